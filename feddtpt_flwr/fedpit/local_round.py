"""What a client does in a round, from the global adapter to the one that it uploads."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.scores import closest, longest_copy, rouge_l
from feddtpt_flwr.fedpit.synthesis import Synthesis, select, synthesise
from feddtpt_flwr.round_examples import stream
from strategies.adapters import Adapter, mix


@dataclass(frozen=True)
class Trained:
    """What a client has after training, before it mixes.

    Attributes
    ----------
    local : Adapter
        Trained on private data; with mixed training on both kinds.
    synthetic : Adapter
        Trained on synthetic data only; the global adapter if there are none.
    metrics : dict[str, int | float]
        What is reported: numbers, never texts.
    """

    local: Adapter
    synthetic: Adapter
    metrics: dict[str, int | float]

    def upload(self, config: FedPITConfig) -> Adapter:
        """Return what leaves the client (FedPIT's local aggregation sharing)."""
        if config.training == "mixed" or not config.synthetic:
            return self.local
        return mix(config.beta, self.local, self.synthetic)


def local_round(
    model: AdaptedModel,
    start: Adapter,
    private: Sequence[Instruction],
    config: FedPITConfig,
    *,
    proximal_mu: float,
    rng: np.random.Generator,
) -> Trained:
    """Train isolated adapters on private and on synthetic data (FedPIT).

    Parameters
    ----------
    model : AdaptedModel
        Its adapter is replaced several times.
    start : Adapter
        The global adapter.
    private : Sequence[Instruction]
        The client's own instructions.
    config : FedPITConfig
        Settings of the run.
    proximal_mu : float
        Weight of FedProx's proximal term.
    rng : numpy.random.Generator
        All randomness.
    """
    clock = time.monotonic()

    def trained(rows: Sequence[Instruction]) -> tuple[Adapter, float]:
        model.load(start)
        loss = model.train(
            rows,
            epochs=config.local_epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            rng=rng,
            proximal_mu=proximal_mu,
        )
        return model.adapter, loss

    shown = [model.shorten(row) for row in private]
    shortened = sum(one != other for one, other in zip(shown, private, strict=True))
    metrics: dict[str, int | float] = {"num-examples": len(private), "shortened": shortened}
    made = Synthesis((), 0, {})
    if config.synthetic:
        model.load(start)
        made = synthesise(
            model,
            private,
            num_candidates=config.num_candidates,
            num_demonstrations=config.num_demonstrations,
            max_instruction_tokens=config.max_instruction_tokens,
            max_response_tokens=config.max_response_tokens,
            rng=rng,
        )
        metrics |= {"written": made.written, "candidates": len(made.candidates)}
        metrics |= {f"dropped-{reason}": number for reason, number in made.dropped.items()}
    local, metrics["loss-local"] = trained(private)
    synthetic = start
    if config.synthetic:
        selected = select(model, made.candidates, config.num_selected)
        metrics["selected"] = len(selected)
        if selected:
            texts = [row.text for row in shown]
            distances = [closest(row.text, texts) for row in selected]
            metrics["synthetic-rouge-l"] = float(np.mean(distances))
            metrics["synthetic-longest-copy"] = longest_copy(_texts(selected), _texts(shown))
        if config.training == "mixed":
            local, metrics["loss-mixed"] = trained([*private, *selected])
        elif selected:
            synthetic, metrics["loss-synthetic"] = trained(selected)
    return Trained(local, synthetic, metrics | {"seconds": time.monotonic() - clock})


def _texts(rows: Sequence[Instruction]) -> list[str]:
    """Return what may be copied, or a copy: not the questions that a task asks of all texts."""
    asked = [row.about or row.instruction for row in rows]
    return asked + [row.response for row in rows if not row.choices]


def client_rng(seed: int, server_round: int, name: str) -> np.random.Generator:
    """Return the randomness of one client in one round, whoever else takes part."""
    return np.random.default_rng([seed, server_round, stream(name)])


def memorisation(
    model: AdaptedModel, adapter: Adapter, private: Sequence[Instruction]
) -> tuple[float, int]:
    """Return how much of the private responses an adapter gives away, and over how many prompts.

    Discoverable memorisation: the model is given the prompt of a private example; Rouge-L of what
    it answers and the true response, both as long as an answer may be, averaged, in [0, 1].
    """
    model.load(adapter)
    answers = model.answer([row.instruction for row in private])
    wanted = [model.shorten(row).response for row in private]
    scores = [rouge_l(*pair) for pair in zip(answers, wanted, strict=True)]
    return float(np.mean(scores)), len(scores)
