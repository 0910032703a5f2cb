"""Turns what happens on the server into history, progress lines and the closing table."""

import time
from collections.abc import Mapping, Sequence
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common import Metrics, NDArrays, Scalar, log
from numpy.typing import NDArray

from feddtpt_flwr import closing_table, versions
from feddtpt_flwr.client_totals import ClientTotals
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.held_out import HeldOut
from feddtpt_flwr.language_model.usage import Prices
from feddtpt_flwr.privacy.exponential import total_epsilon
from feddtpt_flwr.run_folder import CurvePoint, RunFolder
from feddtpt_flwr.statistics import Proportion
from feddtpt_flwr.text_table import render
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.rounds import RoundResult
from strategies.settings import EmbedFn
from strategies.wire import FROM_ARCHIVE_KEY, GENERATOR_KEYS, QUERIES_KEY

UNKNOWN = "not known: the language model did not answer"
PACKAGES = ("flwr", "torch", "transformers", "scikit-learn", "numpy")
"""Packages whose versions are written beside a prompt."""


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
        self._held_out = HeldOut(evaluator, vocabulary, test)
        if missing := set(range(task.num_labels)) - self._held_out.per_label.keys():
            words = ", ".join(repr(task.answers[label]) for label in sorted(missing))
            log(WARNING, "no held-out example has the answer %s", words)
        self._folder = folder
        self._model_name = model_name
        self._prices = Prices(config.price_per_million_input, config.price_per_million_output)
        self._start = time.monotonic()
        self._round_start = self._start
        self._clients = ClientTotals(
            folder,
            tells_accuracy=config.privacy != "exponential",
            more=GENERATOR_KEYS if config.proposer == "prompt-generator" else (),
        )
        self._by_model: Mapping[str, Mapping[str, float]] = {}
        self._prompts: list[Tokens] = []
        self._curve: list[CurvePoint] = []
        self._bytes: list[int] = []
        self._seconds_before = 0.0
        self._uploads: list[list[int]] = []
        self._ended_early = False
        self._redone = 0
        self._at_work = False
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
            known = self._held_out.measure(tokens, f"round {server_round}")
            return (1 - known.value, {"accuracy": known.value}) if known else None
        self._prompts.append(tokens)
        accuracy = self._held_out.measure(tokens, f"round {server_round}")
        if server_round == 0:
            self._folder.append(
                "start",
                prompt=self._vocabulary.decode(tokens),
                accuracy=accuracy.value if accuracy else None,
            )
        self._write_prompt()
        if accuracy is None:
            return None
        self._curve.append(CurvePoint(self._clients.queries, accuracy))
        log(
            INFO,
            "round %d: held-out accuracy %s after %d queries: %s",
            server_round,
            accuracy,
            self._clients.queries,
            self._vocabulary.decode(tokens),
        )
        return 1 - accuracy.value, {"accuracy": accuracy.value}

    def fit_metrics(self, results: list[tuple[int, Metrics]]) -> Metrics:
        """Write down every client's search; return the mean local accuracy and the queries."""
        self._at_work = True
        return self._clients.add("search", results)

    def evaluate_metrics(self, results: list[tuple[int, Metrics]]) -> Metrics:
        """Write down every client's counts; return the queries."""
        metrics = self._clients.add("race", results)
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
            queries=self._clients.queries,
            **self._clients.round_sums,
            accuracy=result.central["accuracy"] if result.central else None,
            epsilon=total_epsilon(self._config, result.server_round + self._redone),
            seconds=round(now - self._round_start, 3),
        )
        if chosen := _per_model(result, result.chosen.tokens):
            self._by_model = chosen["by-model"]
        self._round_start = now
        self._uploads = []
        self._at_work = False
        self._clients.end_round()

    def redo(self, num_rounds: int) -> None:
        """Note that the run does rounds again which the clients may have answered before."""
        self._redone += num_rounds

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
        if not all(
            self._held_out.measure(p, "the end") for p in (self._prompts[0], self._prompts[-1])
        ):
            log(WARNING, "the gain on held-out examples is not known")
        self._write_prompt()
        if self._curve:
            self._folder.plot(self._curve)
        self._folder.close()
        return self._table()

    def state_dict(self) -> dict[str, Any]:
        """Return what was counted and measured so far, as JSON values."""
        return {
            **self._clients.state_dict(),
            **self._held_out.state_dict(),
            "by-model": self._by_model,
            "prompts": self._prompts,
            "curve": [
                {"queries": p.queries, "correct": p.accuracy.correct, "total": p.accuracy.total}
                for p in self._curve
            ],
            "bytes": self._bytes,
            "seconds": self._seconds,
            "redone": self._redone,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._clients.load_state_dict(state)
        self._held_out.load_state_dict(state)
        self._by_model = state["by-model"]
        self._prompts = [tuple(tokens) for tokens in state["prompts"]]
        self._curve = [
            CurvePoint(point["queries"], Proportion(point["correct"], point["total"]))
            for point in state["curve"]
        ]
        self._bytes = list(state["bytes"])
        self._seconds_before = state["seconds"]
        self._redone = state.get("redone", 0)  # of a run from before these were counted

    @property
    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._start

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
                "synonyms": [list(words) for words in self._task.synonyms],
                "language-model": self._model_name,
                "chat": self._config.chat,
                "held-out-accuracy": {
                    "learned": self._describe(tokens),
                    "seed-prompt": self._describe(seed),
                },
                "seed-prompt": self._vocabulary.decode(seed),
                "queries": self._clients.queries,
                "rounds": len(self._prompts) - 1,
                "seed": self._config.seed,
                "versions": versions.of_run(PACKAGES),
            }
        )

    def _describe(self, tokens: Tokens) -> dict[str, Any] | None:
        if (accuracy := self._held_out.accuracy(tokens)) is None:
            return None
        return {
            "accuracy": accuracy.value,
            "interval-95": [accuracy.low, accuracy.high],
            "balanced-accuracy": self._held_out.balanced_accuracy(tokens),
            "examples": accuracy.total,
        }

    def _table(self) -> str:
        seed, learned = self._prompts[0], self._prompts[-1]
        interval = self._held_out.difference(seed, learned)
        return render(
            "FedDTPT",
            {
                "seed prompt": self._vocabulary.decode(seed),
                "learned prompt": self._vocabulary.decode(learned),
                f"accuracy on {len(self._held_out)} held-out examples": (
                    f"seed prompt    {self._held_out.accuracy(seed) or UNKNOWN}\n"
                    f"learned prompt {self._held_out.accuracy(learned) or UNKNOWN}"
                ),
                "difference, paired": (
                    "{:+.1%} [{:+.1%}, {:+.1%}]".format(*interval) if interval else UNKNOWN
                ),
                **closing_table.label_rows(self._held_out, self._task.answers, seed, learned),
                **closing_table.model_rows(self._by_model),
                "LLM queries of the clients": (
                    f"{self._clients.queries:,}, "
                    f"{self._clients.sums[FROM_ARCHIVE_KEY]:,.0f} of them answered before"
                ),
                "LLM queries for the held-out examples": f"{self._held_out.queries:,}",
                **closing_table.endpoint_rows(
                    self._clients.sums,
                    self._held_out,
                    self._prices,
                    self._clients.failures,
                ),
                **closing_table.generator_rows(self._clients.sums),
                **closing_table.limit_rows(self._config, len(self._prompts) - 1, self._ended_early),
                **closing_table.privacy_rows(
                    self._config,
                    len(self._prompts) - 1 + self._redone + self._at_work,
                    self._redone,
                ),
                "bytes per round, all clients": ", ".join(f"{size:,}" for size in self._bytes),
                "time": f"{self._seconds:.0f} s",
                "run folder": str(self._folder.path),
            },
        )


def _per_model(result: RoundResult, tokens: Tokens) -> dict[str, Any]:
    """Return a candidate's counts for each black box, if the clients have different ones."""
    scores = {model: each[tokens] for model, each in result.scores_by_model.items() if each}
    if len(scores) < 2:
        return {}
    counts = {model: {"correct": s.correct, "total": s.total} for model, s in scores.items()}
    return {"by-model": counts}
