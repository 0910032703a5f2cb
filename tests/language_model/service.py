"""A black box behind a real server, as the tests here ask it."""

from typing import Any

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.data import Task
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.language_model.api import ApiLanguageModel
from tests.conftest import ENDPOINT_KEY

PROMPT = "Is this movie review positive or negative?"
MODEL = "smollm2"


def model(url: str, **settings: Any) -> ApiLanguageModel:
    defaults: dict[str, Any] = {
        "key": ENDPOINT_KEY,
        "constrain": "grammar",
        "concurrency": 4,
        "timeout": 30.0,
        "patience": 3.0,
    }
    return ApiLanguageModel(url, MODEL, **(defaults | settings))


def evaluator(
    model: ApiLanguageModel, task: Task, budget: int = 100, cache: AnswerCache | None = None
) -> Evaluator:
    return Evaluator(model, task, QueryBudget(budget), cache)
