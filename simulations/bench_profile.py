"""Where the time of a round goes: the black box's answers, proposals, their language, all else.

python -m simulations bench profile --json -

A round of simulated clients in one process, without Flower's processes (for these, see `bench
overhead`). Models are loaded before. A section holds its own time, not that of sections inside it.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.experiment import load_data
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from simulations.local_federation import Federation
from simulations.stamp import as_text, stamp

REST = "all else: search, tokens to text, clients' state, server's step"
PASSES = ", passes through the model"

SECTIONS = {
    "answers": (LocalLanguageModel, "answer"),
    "proposals": (CausalInfiller, "fill"),
    "language of proposals": (CausalInfiller, "log_likelihood"),
}
"""What is timed apart, by the method that does it."""

MODEL = ((LocalLanguageModel, "_next_logits"), (CausalInfiller, "_read"))
"""Passes through the layers and the output layer; in them the rest of a section is not."""

WANTED_PROPOSALS = 0.05
"""Proposals are to take less than this share of the time of the answers that they cause."""

WANTED_REST = 0.1
"""What is no pass through a model is to take less than this share of all."""


class Stopwatch:
    """Own seconds of nested sections.

    Parameters
    ----------
    clock : Callable[[], float]
        Tells the seconds: those on the wall, or this process's on the processor.

    Attributes
    ----------
    seconds : dict[str, float]
        By section.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock
        self._open = [REST]
        self._since = clock()

    @property
    def passes(self) -> float:
        """Seconds of all passes through the models."""
        return sum(spent for name, spent in self.seconds.items() if name.endswith(PASSES))

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Count what happens inside for ``name``; with `PASSES`, for that part of the section."""
        self.tell()
        self._open.append(self._open[-1] + name if name == PASSES else name)
        try:
            yield
        finally:
            self.tell()
            self._open.pop()

    def tell(self) -> None:
        """Count the time since the last call for the innermost section."""
        now = self._clock()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self, owner: type, method: str, name: str) -> Iterator[None]:
        """Time every call of a class's method."""
        original = getattr(owner, method)

        @wraps(original)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.section(name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            setattr(owner, method, original)


@contextmanager
def watched(clock: Callable[[], float] = time.perf_counter) -> Iterator[Stopwatch]:
    """Time the sections of what happens inside."""
    watch = Stopwatch(clock)
    with ExitStack() as stack:
        for name, (owner, method) in SECTIONS.items():
            stack.enter_context(watch.watching(owner, method, name))
        for owner, method in MODEL:
            stack.enter_context(watch.watching(owner, method, PASSES))
        yield watch
        watch.tell()


def processor_seconds_of_passes(clients: int, settings: Mapping[str, Any]) -> float:
    """Return what all rounds' passes through the models take of the processor, on one thread.

    Not among them are those of the server's own measurements.
    """
    import torch

    federation, threads = _federation(clients, settings), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with watched(time.process_time) as watch:
            federation.run_rounds()
    finally:
        torch.set_num_threads(threads)
    return watch.passes


def run(clients: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Time one round.

    Parameters
    ----------
    clients : int
        Simulated clients.
    settings : dict[str, Any]
        What differs from the defaults.

    Returns
    -------
    dict[str, Any]
        ``seconds`` by section, ``queries``, and the shares ``proposals_of_answers`` (with their
        language) and ``beside_models``.
    """
    federation = _federation(clients, settings)
    with watched() as watch:
        federation.round(1)
    seconds = watch.seconds
    of = {
        name: sum(spent for section, spent in seconds.items() if section.startswith(name))
        for name in SECTIONS
    }
    passes = watch.passes
    proposals = of["proposals"] + of["language of proposals"]
    return {
        **stamp(),
        "clients": clients,
        "settings": settings,
        "queries": federation.queries,
        "seconds": {name: round(spent, 2) for name, spent in sorted(seconds.items())},
        "proposals_of_answers": round(proposals / of["answers"], 3),
        "beside_models": round(1 - passes / sum(seconds.values()), 3),
    }


def _federation(clients: int, settings: Mapping[str, Any]) -> Federation:
    """Return simulated clients, all models loaded."""
    config = RunConfig.from_run_config(settings)
    federation = Federation(config, load_data(config, clients))
    models.language_model(config).answer(["Good."], ["yes", "no"])
    return federation


def markdown(result: dict[str, Any]) -> str:
    """Return the sections as a table, and whether the wanted shares are reached."""
    seconds, whole = result["seconds"], sum(result["seconds"].values())

    def reached(share: float, wanted: float) -> str:
        verdict = "reached" if share < wanted else "not reached"
        return f"{share:.1%}; wanted is less than {wanted:.0%}, which is {verdict}"

    proposals, beside = result["proposals_of_answers"], result["beside_models"]
    return "\n".join(
        [
            "# Where the time of a round goes",
            "",
            f"`python -m simulations bench profile`, {as_text(result)}; one round of "
            f"{result['clients']} clients in one process, {result['queries']:,} queries, models "
            "loaded before.",
            "",
            "| section | seconds | share |",
            "|---|---|---|",
            *(f"| {name} | {s:.1f} | {s / whole:.1%} |" for name, s in seconds.items()),
            "",
            "Proposals and the judgement of their language, as a share of the time of answers: "
            f"{reached(proposals, WANTED_PROPOSALS)}.",
            "",
            "All that is no pass through a model, as a share of the round: "
            f"{reached(beside, WANTED_REST)}.",
            "",
        ]
    )
