"""What the clients report of their searches and scorings, added up."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from logging import WARNING
from typing import Any

from flwr.common import Metrics, log

from feddtpt_flwr.run_folder import RunFolder
from strategies.wire import (
    CLIENT_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    LIMIT_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    UNPARSED_KEY,
    USED_UP_KEY,
)

MOST = 2.0**53
"""Amounts are below; no number above would be exact in sums and plots."""

_SUMMED = (FROM_ARCHIVE_KEY, UNPARSED_KEY, PROMPT_TOKENS_KEY, COMPLETION_TOKENS_KEY, COST_KEY)


class ClientTotals:
    """Writes every report into the history and adds up what it says.

    Parameters
    ----------
    folder : RunFolder
        Holds the history.
    tells_accuracy : bool
        Whether a search that went well says how accurate its prompt is; under differential privacy
        none does.
    more : Iterable[str]
        Amounts that reports of this run hold besides the usual ones, by their names in
        `strategies.wire`.

    Attributes
    ----------
    queries, failures : int
        Queries, and searches and scorings that the black box cut short, in the whole run.
    sums, round_sums : dict[str, float]
        The other amounts in the whole run and in the round so far.
    """

    def __init__(
        self, folder: RunFolder, *, tells_accuracy: bool = True, more: Iterable[str] = ()
    ) -> None:
        self._folder = folder
        self._tells_accuracy = tells_accuracy
        self.queries = 0
        self.failures = 0
        self.sums: dict[str, float] = dict.fromkeys((*_SUMMED, *more), 0)
        self.round_sums = dict(self.sums)

    def add(self, phase: str, reports: Sequence[tuple[int, Metrics]]) -> Metrics:
        """Write down and add up; return the queries and the mean accuracy, by examples.

        A faulty report is left out, with a warning: its prompt or its counts may be good.

        Parameters
        ----------
        phase : str
            What the history calls it.
        reports : Sequence[tuple[int, Metrics]]
            Each client's number of examples and metrics.
        """
        names = Counter(str(metrics.get(CLIENT_KEY, "")) for _, metrics in reports)
        for name, number in names.items():
            if name and number > 1:
                # By its name a node finds what it has kept, on one machine the other's.
                log(WARNING, "%d clients call themselves %s; names must differ", number, name)
        queries, total, correct = 0, 0, 0.0
        for num_examples, metrics in reports:
            values: dict[str, Any] = dict(metrics)
            try:
                asked = _count(values[QUERIES_KEY])
                failed = FAILURE_KEY in values
                cut = failed or USED_UP_KEY in values or LIMIT_KEY in values
                measured = "accuracy" in values or (self._tells_accuracy and not cut)
                accuracy = float(values["accuracy"]) if measured else 0.0
                sums = {key: _amount(values.get(key, 0)) for key in self.sums}
                for changes in ("accepted", "hunch"):
                    if changes in values:
                        values[changes] = json.loads(values[changes])
                server_round = values.pop(ROUND_KEY)
                self._folder.append(phase, round=server_round, num_examples=num_examples, **values)
            # Brackets within brackets are a RecursionError.
            except (KeyError, TypeError, ValueError, RecursionError) as error:
                log(WARNING, "a client's report on its %s is left out: %r", phase, error)
                continue
            queries += asked
            self.failures += failed
            for key, value in sums.items():
                self.sums[key] += value
                self.round_sums[key] += value
            if measured:
                total += num_examples
                correct += num_examples * accuracy
        self.queries += queries
        return {QUERIES_KEY: queries, "accuracy": correct / total if total else 0.0}

    def end_round(self) -> None:
        """Begin the next round's sums."""
        self.round_sums = dict.fromkeys(self.sums, 0)

    def state_dict(self) -> dict[str, Any]:
        """Return what was added up so far, as JSON values."""
        return {
            "queries": self.queries,
            "sums": self.sums,
            "round-sums": self.round_sums,
            "failures": self.failures,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.queries = state["queries"]
        self.sums = dict(state["sums"])
        self.round_sums = dict(state["round-sums"])
        self.failures = state["failures"]


def _amount(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < MOST:
        raise ValueError(f"no amount: {value!r}")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError(f"no count: {value!r}")
    return int(_amount(value))
