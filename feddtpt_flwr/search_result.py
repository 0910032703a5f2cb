"""What a search found, whichever search it was."""

from dataclasses import dataclass

from feddtpt_flwr.feedback import Trial
from feddtpt_flwr.language_model import ModelError
from strategies.candidates import Tokens


@dataclass(frozen=True)
class Hunch:
    """A change that answers and language speak for, but not enough to convince.

    It was tried on half of the examples at least.

    Parameters
    ----------
    tokens : Tokens
        The changed prompt.
    log_odds : float
        What answers and language say together, above 0.
    gain : float
        What it gained in accuracy, in (0, 1], if it changes no answer about examples that it was
        not tried on.
    trial : Trial
        How it was tried.
    """

    tokens: Tokens
    log_odds: float
    gain: float
    trial: Trial


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Parameters
    ----------
    tokens : Tokens
        The best prompt; the one it was given if nothing better was found.
    accuracy, start_accuracy : float
        Accuracy of this prompt and of the one it was given, on the same examples, in [0, 1], as
        the search counts it; zero if the budget did not even cover the first (see `measured`).
    accepted : tuple[Trial, ...]
        The changes that led there, in order.
    num_trials : int
        Changes that were tried.
    failure : ModelError, optional
        What ended the search before its budget was used up.
    measured : bool
        Whether the accuracies are known.
    hunch : Hunch, optional
        Where no change was accepted, the likeliest of those that were tried, if one is likely.
    """

    tokens: Tokens
    accuracy: float
    start_accuracy: float
    accepted: tuple[Trial, ...]
    num_trials: int
    failure: ModelError | None = None
    measured: bool = True
    hunch: Hunch | None = None
