from collections.abc import Iterator

import pytest

from feddtpt_flwr.data import Example, Task
from tests.language_model import fault_proxy as faults
from tests.language_model.fault_proxy import FaultProxy
from tests.language_model.service import PROMPT, evaluator, model


@pytest.fixture
def proxy(endpoint: str) -> Iterator[FaultProxy]:
    with faults.fault_proxy(endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def some(short_reviews: tuple[Example, ...]) -> tuple[Example, ...]:
    return short_reviews[:4]


@pytest.fixture(scope="module")
def expected(endpoint: str, task: Task, some: tuple[Example, ...]) -> list[bool]:
    """What the server answers when nothing goes wrong."""
    correct: list[bool] = evaluator(model(endpoint), task).correct(PROMPT, some).tolist()
    return correct
