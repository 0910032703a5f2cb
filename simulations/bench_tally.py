"""What lies cost when clients compare prompts, by how their counts are put together.

python -m simulations bench tally --json simulations/results/tally.json

Made-up clients and prompts, so that it is known which prompt is the best. A prompt tells two labels
apart more or less well (d' of 0.92, standard deviation 0.45) and leans to one of them (0.8). The
former is as 40 rewordings of Rotten Tomatoes' seed prompt did on 160 reviews with SmolLM2-135M; the
lean, of which these had more (1.3), and how far what is hard for one prompt is so for the others
are assumed. Labels are even, or by Dirichlet(0.1) for each client.
"""

from collections.abc import Callable, Mapping
from itertools import product
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from simulations.stamp import stamp
from strategies.by_model import Count, compared_by
from strategies.candidates import Candidate, Score, choose, tally

Floats = NDArray[np.float64]
Lies = Literal["none", "random counts", "together"]

PROMPTS = 5
CLIENTS = ((10, 16, 3), (10, 26, 3), (4, 64, 1))
"""Clients, examples of each, and how many of them lie where any do."""

APART, APART_SD, LEAN_SD, COMMON = 0.92, 0.45, 0.8, 0.64
UNEVEN = 0.1
TRIMMED = 0.3


def draw(
    clients: int, examples: int, *, uneven: bool, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Floats]:
    """Draw what honest clients count.

    Returns
    -------
    counts : NDArray[np.int64]
        Right answers, shape ``(clients, PROMPTS)``.
    accuracy : NDArray[np.float64]
        Of each prompt on all examples that there are, half of them of each label.
    """
    apart = np.clip(rng.normal(APART, APART_SD, PROMPTS), 0, None)
    lean = rng.normal(0, LEAN_SD, PROMPTS)
    normal = np.vectorize(NormalDist().cdf)
    accuracy = (normal(apart / 2 + lean) + normal(apart / 2 - lean)) / 2
    share = rng.dirichlet([UNEVEN, UNEVEN], clients)[:, 0] if uneven else np.full(clients, 0.5)
    positive = np.arange(examples)[None] < np.round(share * examples)[:, None]
    common = rng.normal(size=(clients, examples, 1)) * np.sqrt(COMMON)
    own = rng.normal(size=(clients, examples, PROMPTS)) * np.sqrt(1 - COMMON)
    says_positive = apart * (positive[..., None] - 0.5) + lean + common + own > 0
    return (says_positive == positive[..., None]).sum(1), accuracy


def lie(
    counts: NDArray[np.int64],
    accuracy: Floats,
    examples: int,
    liars: int,
    lies: Lies,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the counts with those of the first clients made up.

    Together they say that the worst prompt answers everything right and all others nothing.
    """
    told = counts.copy()
    if lies == "random counts":
        told[:liars] = rng.integers(examples + 1, size=(liars, PROMPTS))
    elif lies == "together":
        told[:liars] = 0
        told[:liars, accuracy.argmin()] = examples
    return told


def summed(counts: NDArray[np.int64], examples: int) -> int:
    """Return the prompt of the largest sum."""
    said = tally([scores(row, examples) for row in counts])
    return choose(CANDIDATES, said)[0].tokens[0]


def as_it_is(counts: NDArray[np.int64], examples: int) -> int:
    """Return the prompt that the strategies choose."""
    told = [scores(row, examples) for row in counts]
    said = compared_by([Count("", row) for row in told], "mean")
    return choose(CANDIDATES, said, tally(told))[0].tokens[0]


def trimmed(counts: NDArray[np.int64], examples: int) -> int:
    """Return the prompt of the largest mean without the outer three tenths on both sides."""
    from scipy.stats import trim_mean

    centred = counts - counts.mean(1, keepdims=True)
    return int(np.argmax(np.round(trim_mean(centred, TRIMMED, axis=0), 9)))


WAYS: Mapping[str, Callable[[NDArray[np.int64], int], int]] = {
    "sum": summed,
    "as it is": as_it_is,
    "trimmed mean": trimmed,
}

CANDIDATES = [Candidate((i,), "") for i in range(PROMPTS)]


def scores(row: NDArray[np.int64], examples: int) -> dict[tuple[int, ...], Score]:
    """Return one client's counts as a strategy reads them."""
    return {(i,): Score(int(count), examples) for i, count in enumerate(row)}


def run(draws: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Compare the ways over as many made-up federations for each kind.

    Returns
    -------
    dict
        ``losses``: for each kind of federation and way, the accuracy of the chosen prompt minus
        that of the best one, mean and standard error.
    """
    losses = []
    for (clients, examples, liars), uneven, lies in product(CLIENTS, (False, True), get_args(Lies)):
        rng = np.random.default_rng([seed, clients, examples, uneven, len(lies)])
        lost: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(draws):
            counts, accuracy = draw(clients, examples, uneven=uneven, rng=rng)
            told = lie(counts, accuracy, examples, liars, lies, rng)
            for name, way in WAYS.items():
                lost[name].append(accuracy[way(told, examples)] - accuracy.max())
        losses.append(
            {
                "clients": clients,
                "examples": examples,
                "labels": "uneven" if uneven else "even",
                "liars": 0 if lies == "none" else liars,
                "lies": lies,
                **{
                    name: [
                        round(float(np.mean(values)), 4),
                        round(float(np.std(values) / np.sqrt(draws)), 4),
                    ]
                    for name, values in lost.items()
                },
            }
        )
    return {**stamp(), "draws": draws, "seed": seed, "losses": losses}
