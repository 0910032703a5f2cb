"""Turns what happens on the server into history, progress lines and the closing table."""

import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common import Metrics, NDArrays, Scalar, log
from numpy.typing import NDArray

from feddtpt_flwr import __version__, closing_table
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.language_model.usage import Prices
from feddtpt_flwr.privacy.exponential import total_epsilon
from feddtpt_flwr.run_folder import CurvePoint, RunFolder
from feddtpt_flwr.statistics import Proportion, paired_difference
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.rounds import RoundResult
from strategies.settings import EmbedFn
from strategies.wire import (
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    GENERATOR_KEYS,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    UNPARSED_KEY,
    USED_UP_KEY,
)

UNKNOWN = "not known: the language model did not answer"
_SUMMED = (FROM_ARCHIVE_KEY, UNPARSED_KEY, PROMPT_TOKENS_KEY, COMPLETION_TOKENS_KEY, COST_KEY)
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
        self._prices = Prices(config.price_per_million_input, config.price_per_million_output)
        self._start = time.monotonic()
        self._round_start = self._start
        self._queries = 0
        generator = GENERATOR_KEYS if config.proposer == "prompt-generator" else ()
        self._sums: dict[str, float] = dict.fromkeys((*_SUMMED, *generator), 0)
        self._round_sums = dict(self._sums)
        self._failures = 0
        self._by_model: Mapping[str, Mapping[str, float]] = {}
        self._prompts: list[Tokens] = []
        self._correct: dict[Tokens, NDArray[np.bool_]] = {}
        self._curve: list[CurvePoint] = []
        self._bytes: list[int] = []
        self._seconds_before = 0.0
        self._uploads: list[list[int]] = []
        self._ended_early = False
        settings = config.to_run_config()
        folder.write_config({**settings, "resume": ""})
        folder.write_resume(settings)

    def evaluate(
        self, server_round: int, arrays: NDArrays, _: dict[str, Scalar]
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Return loss (1 - accuracy) and accuracy of the global prompt on the test set.

        None if the black box fails: what the clients have found is worth more than this figure.
        """
        tokens = tuple(int(token) for token in arrays[0])
        if server_round < len(self._prompts):  # a resumed run begins with the prompt it has
            known = self._measure(tokens, f"round {server_round}")
            return (1 - known.value, {"accuracy": known.value}) if known else None
        self._prompts.append(tokens)
        accuracy = self._measure(tokens, f"round {server_round}")
        if server_round == 0:
            self._folder.append(
                "start",
                prompt=self._vocabulary.decode(tokens),
                accuracy=accuracy.value if accuracy else None,
            )
        self._write_prompt()
        if accuracy is None:
            return None
        self._curve.append(CurvePoint(self._queries, accuracy))
        log(
            INFO,
            "round %d: held-out accuracy %s after %d queries: %s",
            server_round,
            accuracy,
            self._queries,
            self._vocabulary.decode(tokens),
        )
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
                    **_per_model(result, candidate.tokens),
                }
            )
        self._folder.append(
            "round",
            round=result.server_round,
            chosen=result.chosen.origin,
            prompt=self._vocabulary.decode(result.chosen.tokens),
            candidates=candidates,
            uploads=self._uploads,
            failures=result.failures,
            bytes=result.num_bytes,
            queries=self._queries,
            **self._round_sums,
            accuracy=result.central["accuracy"] if result.central else None,
            epsilon=total_epsilon(self._config, result.server_round),
            seconds=round(now - self._round_start, 3),
        )
        if chosen := _per_model(result, result.chosen.tokens):
            self._by_model = chosen["by-model"]
        self._round_start = now
        self._uploads = []
        self._round_sums = dict.fromkeys(self._sums, 0)

    def ended_early(self) -> None:
        """Write down that the run is over because no client may ask anything more."""
        self._ended_early = True
        self._folder.append("used-up", round=len(self._prompts) - 1)

    def watch(self, embed: EmbedFn) -> EmbedFn:
        """Return ``embed``, which the strategy calls with a round's uploads, and remember them."""

        def embed_and_remember(
            prompts: Sequence[NDArray[np.int64]],
        ) -> Sequence[NDArray[np.floating[Any]]]:
            self._uploads = [prompt.tolist() for prompt in prompts]
            return embed(prompts)

        return embed_and_remember

    def close(self) -> str:
        """Draw the plot and return the closing table."""
        # The black box may have come back since.
        if not all(self._measure(p, "the end") for p in (self._prompts[0], self._prompts[-1])):
            log(WARNING, "the gain on held-out examples is not known")
        self._write_prompt()
        if self._curve:
            self._folder.plot(self._curve)
        self._folder.close()
        return self._table()

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted and measured so far, as JSON values."""
        return {
            "queries": self._queries,
            "sums": self._sums,
            "round-sums": self._round_sums,
            "failures": self._failures,
            "by-model": self._by_model,
            "prompts": self._prompts,
            "correct": [
                {"tokens": tokens, "correct": correct.astype(int).tolist()}
                for tokens, correct in self._correct.items()
            ],
            "curve": [
                {"queries": p.queries, "correct": p.accuracy.correct, "total": p.accuracy.total}
                for p in self._curve
            ],
            "bytes": self._bytes,
            "held-out-queries": self._evaluator.budget.used,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._queries = state["queries"]
        self._sums = dict(state["sums"])
        self._round_sums = dict(state["round-sums"])
        self._failures = state["failures"]
        self._by_model = state["by-model"]
        self._prompts = [tuple(tokens) for tokens in state["prompts"]]
        self._correct = {
            tuple(item["tokens"]): np.array(item["correct"], dtype=np.bool_)
            for item in state["correct"]
        }
        self._curve = [
            CurvePoint(point["queries"], Proportion(point["correct"], point["total"]))
            for point in state["curve"]
        ]
        self._bytes = list(state["bytes"])
        self._evaluator.budget.used = state["held-out-queries"]
        self._seconds_before = state["seconds"]

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

    def _client_metrics(self, phase: str, results: list[tuple[int, Metrics]]) -> Metrics:
        queries, total, correct = 0, 0, 0.0
        for num_examples, metrics in results:
            values: dict[str, Any] = dict(metrics)
            try:
                asked = int(values[QUERIES_KEY])
                failed = FAILURE_KEY in values
                # Under differential privacy a search does not tell its accuracy.
                measured = "accuracy" in values or not (
                    failed or USED_UP_KEY in values or self._config.privacy == "exponential"
                )
                accuracy = float(values["accuracy"]) if measured else 0.0
                sums = {key: _amount(values.get(key, 0)) for key in self._sums}
                if "accepted" in values:
                    values["accepted"] = json.loads(values["accepted"])
                server_round = values.pop(ROUND_KEY)
                self._folder.append(phase, round=server_round, num_examples=num_examples, **values)
            except (KeyError, TypeError, ValueError) as error:
                # Its prompt or its counts may be good; a faulty report must not end the run.
                log(WARNING, "a client's report on its %s is left out: %r", phase, error)
                continue
            queries += asked
            self._failures += failed
            for key, value in sums.items():
                self._sums[key] += value
                self._round_sums[key] += value
            if measured:
                total += num_examples
                correct += num_examples * accuracy
        self._queries += queries
        return {QUERIES_KEY: queries, "accuracy": correct / total if total else 0.0}

    def _measure(self, tokens: Tokens, when: str) -> Proportion | None:
        """Return the held-out accuracy of a prompt, or None if the black box fails."""
        if tokens not in self._correct:
            try:
                correct = self._evaluator.correct(self._vocabulary.decode(tokens), self._test)
            except ModelError as error:
                log(WARNING, "%s: no held-out accuracy: %s", when, error)
                return None
            self._correct[tokens] = correct
        return self._accuracy(tokens)

    def _accuracy(self, tokens: Tokens) -> Proportion | None:
        correct = self._correct.get(tokens)
        return None if correct is None else Proportion(int(correct.sum()), len(correct))

    def _write_prompt(self) -> None:
        seed, tokens = self._prompts[0], self._prompts[-1]
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
                    "learned": _describe(self._accuracy(tokens)),
                    "seed-prompt": _describe(self._accuracy(seed)),
                },
                "seed-prompt": self._vocabulary.decode(seed),
                "queries": self._queries,
                "rounds": len(self._prompts) - 1,
                "seed": self._config.seed,
                "versions": {
                    "python": platform.python_version(),
                    "feddtpt-flwr": __version__,
                    **{name: _version(name) for name in _VERSIONS},
                },
            }
        )

    def _table(self) -> str:
        seed, learned = self._prompts[0], self._prompts[-1]
        difference = UNKNOWN
        if seed in self._correct and learned in self._correct:
            interval = paired_difference(self._correct[seed], self._correct[learned])
            difference = "{:+.1%} [{:+.1%}, {:+.1%}]".format(*interval)
        return closing_table.render(
            {
                "seed prompt": self._vocabulary.decode(seed),
                "learned prompt": self._vocabulary.decode(learned),
                f"accuracy on {len(self._test)} held-out examples": (
                    f"seed prompt    {self._accuracy(seed) or UNKNOWN}\n"
                    f"learned prompt {self._accuracy(learned) or UNKNOWN}"
                ),
                "difference, paired": difference,
                **closing_table.model_rows(self._by_model),
                "LLM queries of the clients": (
                    f"{self._queries:,}, {self._sums[FROM_ARCHIVE_KEY]:,.0f} of them answered "
                    "before"
                ),
                "LLM queries for the held-out examples": f"{self._evaluator.budget.used:,}",
                **closing_table.endpoint_rows(
                    self._sums, self._evaluator, self._prices, self._failures
                ),
                **closing_table.generator_rows(self._sums),
                **closing_table.limit_rows(self._config, len(self._prompts) - 1, self._ended_early),
                **closing_table.privacy_rows(self._config, len(self._prompts) - 1),
                "bytes per round, all clients": ", ".join(f"{size:,}" for size in self._bytes),
                "time": f"{self._seconds:.0f} s",
                "run folder": str(self._folder.path),
            }
        )


def _describe(accuracy: Proportion | None) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    return {
        "accuracy": accuracy.value,
        "interval-95": [accuracy.low, accuracy.high],
        "examples": accuracy.total,
    }


def _per_model(result: RoundResult, tokens: Tokens) -> dict[str, Any]:
    """Return a candidate's counts for each black box, if the clients have different ones."""
    scores = {model: each[tokens] for model, each in result.scores_by_model.items() if each}
    if len(scores) < 2:
        return {}
    counts = {model: {"correct": s.correct, "total": s.total} for model, s in scores.items()}
    return {"by-model": counts}


def _amount(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"no amount: {value!r}")
    return value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
