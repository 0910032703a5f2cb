"""Turns what happens on the server into history, progress lines and the closing table."""

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from io import StringIO
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common import Metrics, NDArrays, Scalar, log
from numpy.typing import NDArray

from feddtpt_flwr import __version__
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.run_folder import CurvePoint, RunFolder
from feddtpt_flwr.statistics import Proportion, paired_difference
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.rounds import RoundResult
from strategies.wire import QUERIES_KEY, ROUND_KEY

_VERSIONS = ("flwr", "torch", "transformers", "scikit-learn", "numpy")


class Recorder:
    """Evaluates, counts and writes down a run.

    Its methods are the callbacks that the strategy takes.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    task : Task
        The task.
    vocabulary : Vocabulary
        Turns tokens into text.
    evaluator : Evaluator
        Asks the black box about the test set; apart from the clients' queries.
    test : tuple[Example, ...]
        Held-out examples.
    folder : RunFolder
        Where everything goes.
    model_name : str
        The black box, as it calls itself.
    """

    def __init__(
        self,
        config: RunConfig,
        task: Task,
        vocabulary: Vocabulary,
        evaluator: Evaluator,
        test: tuple[Example, ...],
        folder: RunFolder,
        model_name: str,
    ) -> None:
        self._config = config
        self._task = task
        self._vocabulary = vocabulary
        self._evaluator = evaluator
        self._test = test
        self._folder = folder
        self._model_name = model_name
        self._start = time.monotonic()
        self._round_start = self._start
        self._queries = 0
        self._prompts: list[Tokens] = []
        self._correct: list[NDArray[np.bool_]] = []
        self._curve: list[CurvePoint] = []
        self._bytes: list[int] = []
        folder.write_config(config.to_run_config())

    def evaluate(
        self, server_round: int, arrays: NDArrays, _: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]]:
        """Return loss (1 - accuracy) and accuracy of the global prompt on the test set."""
        tokens = tuple(int(token) for token in arrays[0])
        correct = self._evaluator.correct(self._vocabulary.decode(tokens), self._test)
        accuracy = Proportion(int(correct.sum()), len(correct))
        self._prompts.append(tokens)
        self._correct.append(correct)
        self._curve.append(CurvePoint(self._queries, accuracy))
        log(
            INFO,
            "round %d: held-out accuracy %s after %d queries: %s",
            server_round,
            accuracy,
            self._queries,
            self._vocabulary.decode(tokens),
        )
        if server_round == 0:
            self._folder.append(
                "start", prompt=self._vocabulary.decode(tokens), accuracy=accuracy.value
            )
        self._write_prompt()
        return 1 - accuracy.value, {"accuracy": accuracy.value}

    def fit_metrics(self, results: list[tuple[int, Metrics]]) -> Metrics:
        """Write down every client's search; return the mean local accuracy and the queries."""
        return self._client_metrics("search", results)

    def evaluate_metrics(self, results: list[tuple[int, Metrics]]) -> Metrics:
        """Write down every client's counts; return the queries."""
        metrics = self._client_metrics("race", results)
        return {QUERIES_KEY: metrics[QUERIES_KEY]}

    def round(self, result: RoundResult) -> None:
        """Write down how a round's global prompt was found."""
        now = time.monotonic()
        self._bytes.append(result.num_bytes)
        candidates = []
        for candidate in result.candidates:
            score = result.scores.get(candidate.tokens)
            candidates.append(
                {
                    "origin": candidate.origin,
                    "prompt": self._vocabulary.decode(candidate.tokens),
                    "correct": score.correct if score else None,
                    "total": score.total if score else None,
                }
            )
        self._folder.append(
            "round",
            round=result.server_round,
            chosen=result.chosen.origin,
            prompt=self._vocabulary.decode(result.chosen.tokens),
            candidates=candidates,
            failures=result.failures,
            bytes=result.num_bytes,
            queries=self._queries,
            accuracy=result.central["accuracy"] if result.central else None,
            seconds=round(now - self._round_start, 3),
        )
        self._round_start = now

    def close(self) -> str:
        """Draw the plot and return the closing table."""
        self._folder.plot(self._curve)
        return self._table()

    def _client_metrics(self, phase: str, results: list[tuple[int, Metrics]]) -> Metrics:
        queries, total, correct = 0, 0, 0.0
        for num_examples, metrics in results:
            values: dict[str, Any] = dict(metrics)
            try:
                asked, accuracy = int(values[QUERIES_KEY]), float(values["accuracy"])
                if "accepted" in values:
                    values["accepted"] = json.loads(values["accepted"])
                server_round = values.pop(ROUND_KEY)
                self._folder.append(phase, round=server_round, num_examples=num_examples, **values)
            except (KeyError, TypeError, ValueError) as error:
                # Its prompt or its counts may be good; a faulty report must not end the run.
                log(WARNING, "a client's report on its %s is left out: %r", phase, error)
                continue
            queries += asked
            total += num_examples
            correct += num_examples * accuracy
        self._queries += queries
        return {QUERIES_KEY: queries, "accuracy": correct / total if total else 0.0}

    def _write_prompt(self) -> None:
        first, last = self._curve[0].accuracy, self._curve[-1].accuracy
        tokens = self._prompts[-1]
        self._folder.write_prompt(
            {
                "prompt": self._vocabulary.decode(tokens),
                "tokens": list(tokens),
                "masked-lm": self._config.masked_lm,
                "vocabulary": self._vocabulary.fingerprint,
                "task": self._task.name,
                "template": self._task.template,
                "labels": list(self._task.labels),
                "answers": list(self._task.answers),
                "language-model": self._model_name,
                "chat": self._config.chat,
                "held-out-accuracy": {
                    "learned": _describe(last),
                    "seed-prompt": _describe(first),
                },
                "seed-prompt": self._vocabulary.decode(self._prompts[0]),
                "queries": self._queries,
                "rounds": len(self._curve) - 1,
                "seed": self._config.seed,
                "versions": {
                    "python": platform.python_version(),
                    "feddtpt-flwr": __version__,
                    **{name: _version(name) for name in _VERSIONS},
                },
            }
        )

    def _table(self) -> str:
        from rich.console import Console
        from rich.table import Table

        difference = paired_difference(self._correct[0], self._correct[-1])
        table = Table(title="FedDTPT", show_header=False, title_justify="left")
        rows = {
            "seed prompt": self._vocabulary.decode(self._prompts[0]),
            "learned prompt": self._vocabulary.decode(self._prompts[-1]),
            f"accuracy on {len(self._test)} held-out examples": (
                f"seed prompt    {self._curve[0].accuracy}\n"
                f"learned prompt {self._curve[-1].accuracy}"
            ),
            "difference, paired": "{:+.1%} [{:+.1%}, {:+.1%}]".format(*difference),
            "LLM queries of the clients": f"{self._queries:,}",
            "LLM queries for the held-out examples": f"{self._evaluator.budget.used:,}",
            "bytes per round, all clients": ", ".join(f"{size:,}" for size in self._bytes),
            "time": f"{time.monotonic() - self._start:.0f} s",
            "run folder": str(self._folder.path),
        }
        for name, value in rows.items():
            table.add_row(name, value)
        text = StringIO()
        Console(file=text, width=100).print(table)
        return text.getvalue()


def _describe(accuracy: Proportion) -> dict[str, Any]:
    return {
        "accuracy": accuracy.value,
        "interval-95": [accuracy.low, accuracy.high],
        "examples": accuracy.total,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
