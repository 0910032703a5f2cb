"""What a FedPIT client trains on what, without a model."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.local_round import client_rng, local_round
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.synthesis import Synthesis, select

PRIVATE = [Instruction(f"ask {i}", "say") for i in range(3)]
MADE = tuple(Instruction(f"made {i}", "up", "made") for i in range(2))


class Adding:
    """A double of a model: a private row adds 1 to the adapter, a synthetic one 100."""

    def __init__(self) -> None:
        self.value = 0.0

    def load(self, adapter: Any) -> None:
        self.value = float(adapter["a"][0])

    def train(self, rows: Sequence[Instruction], **_: Any) -> float:
        self.value += sum(100 if row.topic == "made" else 1 for row in rows)
        return 0.0

    @property
    def adapter(self) -> dict[str, Any]:
        return {"a": np.array([self.value], dtype=np.float32)}

    def shorten(self, row: Instruction) -> Instruction:
        return row


@pytest.mark.parametrize(
    ("settings", "uploaded"),
    [
        ({"beta": 0.0}, 200),  # of synthetic rows alone, from the global adapter again
        ({"beta": 0.5}, 101.5),
        ({"beta": 1.0}, 3),
        ({"beta": 0.0, "training": "mixed"}, 203),
    ],
)
def test_what_an_upload_was_trained_on(
    settings: dict[str, Any], uploaded: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "feddtpt_flwr.fedpit.local_round"
    monkeypatch.setattr(f"{module}.synthesise", lambda *_, **__: Synthesis(MADE, 2, {}))
    monkeypatch.setattr(f"{module}.select", lambda *_: MADE)
    config = FedPITConfig.from_run_config(settings)
    trained = local_round(
        cast(AdaptedModel, Adding()),
        {"a": np.zeros(1, dtype=np.float32)},
        PRIVATE,
        config,
        proximal_mu=0.0,
        rng=np.random.default_rng(0),
    )
    assert trained.upload(config)["a"][0] == uploaded


def test_examples_that_are_cut_are_counted() -> None:
    class Cutting(Adding):
        def shorten(self, row: Instruction) -> Instruction:
            return replace(row, instruction=row.instruction.removesuffix("2"))

    trained = local_round(
        cast(AdaptedModel, Cutting()),
        {"a": np.zeros(1, dtype=np.float32)},
        PRIVATE,
        FedPITConfig.from_run_config({"beta": 1.0}),
        proximal_mu=0.0,
        rng=np.random.default_rng(0),
    )
    assert trained.metrics["shortened"] == 1


def test_the_lowest_scores_are_selected() -> None:
    losses = {True: np.array([2.0, 1.0, 3.0]), False: np.array([2.0, 4.0, 2.0])}
    model: Any = SimpleNamespace(
        response_losses=lambda rows, with_instruction=True: losses[with_instruction]
    )
    rows = [Instruction(str(i), "r") for i in range(3)]
    assert select(model, rows, 2) == (rows[1], rows[0])


def test_every_round_and_client_has_its_own_randomness() -> None:
    drawn = {client_rng(0, number, name).random() for number in (1, 2) for name in ("a", "b")}
    assert len(drawn) == 4
