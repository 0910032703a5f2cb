import pytest

from feddtpt_flwr.data import DataError
from feddtpt_flwr.fedpit.instructions import Instruction, InstructionData
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.tasks import drug_reviews


@pytest.fixture(scope="session")
def drugs() -> InstructionData:
    try:
        return drug_reviews()
    except DataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def short(drugs: InstructionData) -> tuple[Instruction, ...]:
    """Real instructions of few words, for what needs the model."""
    shortest = sorted(drugs.train, key=lambda row: len(row.text.split()))
    return tuple(row for row in shortest if row.choices)[:8]


@pytest.fixture(scope="session")
def model(embedded_assets: None) -> AdaptedModel:
    pytest.importorskip("peft")
    return AdaptedModel(
        "embedded", rank=4, dtype="float32", max_instruction_tokens=32, max_response_tokens=8
    )
