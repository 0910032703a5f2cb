"""FedPIT's rounds in one process, on the real small model at tiny settings."""

from typing import Any

import pytest

from feddtpt_flwr.fedpit.local_round import Trained, local_round
from simulations.fedpit_federation import Federation

TINY = {
    "num-server-rounds": 1,
    "examples-per-client": 2,
    "num-candidates": 2,
    "num-selected": 1,
    "num-demonstrations": 2,
    "max-instruction-tokens": 16,
    "max-response-tokens": 4,
    "batch-size": 2,
    "lora-rank": 4,
    "test-size": 4,
}
CLIENTS = 2


@pytest.mark.slow
def test_betas_share_what_they_have_in_common(
    embedded_assets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    rounds: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Trained:
        rounds.append(1)
        return local_round(*args, **kwargs)

    monkeypatch.setattr("simulations.fedpit_federation.local_round", counting)
    federation = Federation(TINY)
    none = federation.tune(CLIENTS, {"beta": 0.0})
    half = federation.tune(CLIENTS, {"beta": 0.5})
    assert len(rounds) == CLIENTS, "beta decides after the training"
    assert half.before == none.before
    assert half.synthetic_rouge_l == none.synthetic_rouge_l
    # Rank 4, 30 layers, queries 576 to 576 and values 576 to 192, two bytes each; sent twice to
    # every client and once from it.
    adapter = 2 * 30 * 4 * ((576 + 576) + (576 + 192))
    assert none.bytes_per_round == pytest.approx(3 * CLIENTS * adapter, rel=0.05)
    federation.tune(CLIENTS, {"beta": 1.0})
    assert len(rounds) == 2 * CLIENTS, "without synthetic data the training is another"
