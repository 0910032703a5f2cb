"""The settings of FedDTPT that both of its strategies share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from strategies.aggregation import Method
from strategies.by_model import ChooseFor
from strategies.candidates import Tokens
from strategies.elbow import ElbowMethod
from strategies.selection import FluencyFn, Noise
from strategies.wire import ClientWeights, UploadError, read_prompt

EmbedFn = Callable[[Sequence[NDArray[np.int64]]], Sequence[NDArray[np.floating[Any]]]]
"""Prompts, each of shape ``(N_k,)``, to contextual token embeddings, each of shape ``(N_k, d)``,
the paper's ``E_k^n`` (equations 3 and 4)."""


@dataclass(frozen=True)
class RoundSettings:
    """What both strategies are set up with; their docstrings describe it.

    Raises
    ------
    ValueError
        If a value is not allowed; the message names it and what is.
    """

    embed_fn: EmbedFn
    vocabulary_size: int
    vocabulary: str = ""
    max_tokens: int = 24
    aggregation: Method = "feddtpt"
    min_samples: int | None = None
    elbow_method: ElbowMethod = "split"
    noise: Noise = "drop"
    n_clusters: int | None = None
    fluency_fn: FluencyFn | None = None
    client_weights: ClientWeights = "equal"
    guard: bool = True
    choose_for: ChooseFor = "mean"
    race_candidates: int = 4
    race_examples: int = 256
    admissible: Callable[[Tokens], bool] = lambda _: True
    min_uploads: int = 1
    min_scores: int = 1
    accept_failures: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "max_tokens", "race_candidates"):
            _require_whole(name, getattr(self, name), "at least 1", 1)
        _require_whole("race_examples", self.race_examples, "at least 0", 0)
        for name in ("min_samples", "n_clusters"):
            if (number := getattr(self, name)) is not None:
                _require_whole(name, number, "None or at least 1", 1)
        literals = {
            "aggregation": Method,
            "elbow_method": ElbowMethod,
            "noise": Noise,
            "client_weights": ClientWeights,
            "choose_for": ChooseFor,
        }
        for name, allowed in literals.items():
            if getattr(self, name) not in get_args(allowed):
                names = ", ".join(get_args(allowed))
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; allowed: {names}")

    def read_initial(self, arrays: Sequence[NDArray[Any]]) -> Tokens:
        """Return the first global prompt.

        Raises
        ------
        ValueError
            If it is not one prompt within the vocabulary and the length limit.
        """
        if len(arrays) != 1:
            raise ValueError(f"the initial prompt is one array of token ids, got {len(arrays)}")
        try:
            return read_prompt(
                np.asarray(arrays[0]),
                vocabulary_size=self.vocabulary_size,
                max_tokens=self.max_tokens,
            )
        except UploadError as error:
            raise ValueError(f"the initial prompt is malformed: {error}") from None


def require_share(name: str, value: float) -> None:
    """Raise a `ValueError` that names it unless a share of the clients is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def _require_whole(name: str, number: Any, what: str, least: int) -> None:
    if not isinstance(number, Integral):
        raise ValueError(f"{name} must be a whole number, got {number!r}")
    if int(number) < least:
        raise ValueError(f"{name} must be {what}, got {number!r}")
