"""Turns what happens in a FedPIT run into history, result file, plot and closing table."""

import time
from dataclasses import asdict
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.common import log

from feddtpt_flwr import versions
from feddtpt_flwr.fedpit.client_app import CLIENT_KEY, MEMORISATION_KEY, START_KEY
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.scores import Utility
from feddtpt_flwr.run_folder import RunFolder
from feddtpt_flwr.text_table import render
from strategies.adapters import from_record, unstack_layers
from strategies.fedpit import PhaseReport
from strategies.wire import LONGEST_NAME, short_line

RESERVED = ("self", "event", "round", "time")
"""Metrics of these names would be taken for something else in the history."""

PACKAGES = ("flwr", "torch", "transformers", "peft", "rouge-score", "numpy")
"""Packages whose versions are written with the results."""


_MOST = 10**6  # words in a row; no text has more


class Recorder:
    """Evaluates, counts and writes down a run.

    Its methods are the callbacks that the strategy takes.

    Parameters
    ----------
    config : FedPITConfig
        Settings of the run.
    model : AdaptedModel
        The model; its adapter is replaced in every round.
    test : tuple[Instruction, ...]
        Held-out instructions.
    folder : RunFolder
        Where everything goes.
    """

    def __init__(
        self,
        config: FedPITConfig,
        model: AdaptedModel,
        test: tuple[Instruction, ...],
        folder: RunFolder,
    ) -> None:
        self._config = config
        self._model = model
        self._test = test
        self._folder = folder
        self._start = self._round_start = time.monotonic()
        self._utility: list[Utility] = []
        self._memorisation: list[float | None] = [None]
        self._synthetic: list[float] = []
        self._selected: list[int] = []
        self._copied = 0
        self._round_bytes = self._round_rejected = self._round_failures = 0
        self._bytes: list[int] = []
        self._rejected = self._failures = 0
        folder.write_config(config.to_run_config())

    def phase(self, report: PhaseReport) -> None:
        """Write down what the nodes sent in one half of a round.

        Raises
        ------
        RuntimeError
            If no node trained in the first round: something is wrong with all of them.
        """
        if report.phase == "train" and report.server_round == 1 and not report.replies:
            reason = next(iter((*report.errors, *report.rejected)), "no node answered")
            raise RuntimeError(f"no node could train in the first round: {reason}")
        self._round_bytes += report.num_bytes
        self._round_rejected += len(report.rejected)
        self._round_failures += report.failures
        values: list[dict[str, Any]] = []
        for node_id, content in report.replies:
            (metrics,) = content.metric_records.values()
            about = content.config_records.get("about", ConfigRecord())
            name = short_line(about.get(CLIENT_KEY, f"node-{node_id}"), LONGEST_NAME)
            values.append({**metrics})
            told = {key: value for key, value in metrics.items() if key not in RESERVED}
            self._folder.append(
                report.phase, round=report.server_round, **{**told, CLIENT_KEY: name}
            )
        if report.phase == "train":
            self._synthetic += _shares(values, "synthetic-rouge-l")
            self._copied = max([self._copied, *_counts(values, "synthetic-longest-copy", _MOST)])
            selected = _counts(values, "selected", self._config.num_selected)
            if without := selected.count(0):
                log(
                    WARNING,
                    "round %d: %d of %d clients have no synthetic example to train on; "
                    "history.jsonl says what was dropped",
                    report.server_round,
                    without,
                    len(selected),
                )
            self._selected += selected
            if report.server_round == 1:
                self._memorisation[0] = _average(values, START_KEY)
        else:
            self._memorisation.append(_average(values, MEMORISATION_KEY))

    def keep(self, _: int, arrays: ArrayRecord) -> None:
        """Write the new global adapter, before anything else can fail."""
        self._model.load(unstack_layers(from_record(arrays, "float32")))
        self._folder.write_folder("adapter", self._model.save)

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Answer the held-out instructions with the global adapter."""
        self._model.load(unstack_layers(from_record(arrays, "float32")))
        answers = self._model.answer([row.instruction for row in self._test])
        utility = Utility.of([self._model.shorten(row) for row in self._test], answers)
        self._utility.append(utility)
        now = time.monotonic()
        if server_round:
            self._bytes.append(self._round_bytes)
            self._rejected += self._round_rejected
            self._failures += self._round_failures
        self._folder.append(
            "round" if server_round else "start",
            round=server_round,
            **_describe(utility),
            memorisation=self._memorisation[-1] if server_round else None,
            bytes=self._round_bytes,
            rejected=self._round_rejected,
            failures=self._round_failures,
            seconds=round(now - self._round_start, 3),
        )
        log(
            INFO,
            "round %d: held-out Rouge-L %s, accuracy %s, memorisation %s",
            server_round,
            utility.rouge_l,
            utility.accuracy or "-",
            _shown(self._memorisation[-1] if server_round else None),
        )
        self._round_bytes = self._round_rejected = self._round_failures = 0
        self._round_start = now
        self._write_result()
        metrics: dict[str, float] = {"rouge-l": utility.rouge_l.value}
        if utility.accuracy:
            metrics["accuracy"] = utility.accuracy.value
        return MetricRecord({**metrics})

    def close(self) -> str:
        """Draw the plot and return the closing table."""
        self._plot()
        return self._table()

    def _write_result(self) -> None:
        self._folder.write_json(
            "result.json",
            {
                "task": self._config.task,
                "language-model": self._config.language_model,
                "rounds": len(self._bytes),
                "utility": [_describe(utility) for utility in self._utility],
                "memorisation": self._memorisation,
                "synthetic-rouge-l": float(np.mean(self._synthetic)) if self._synthetic else None,
                "synthetic-longest-copy": self._copied if self._synthetic else None,
                "selected": self._selected,
                "bytes": self._bytes,
                "rejected": self._rejected,
                "failures": self._failures,
                "seconds": round(time.monotonic() - self._start, 1),
                "settings": self._config.to_run_config(),
                "versions": versions.of_run(PACKAGES),
            },
        )

    def _plot(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        rounds = range(len(self._utility))
        means = [utility.rouge_l for utility in self._utility]
        axes.plot(rounds, [m.value for m in means], marker="o", label="utility: held-out responses")
        axes.fill_between(rounds, [m.low for m in means], [m.high for m in means], alpha=0.2)
        leaked = [np.nan if value is None else value for value in self._memorisation]
        label = "memorisation: private responses"
        axes.plot(range(len(leaked)), leaked, marker="s", label=label)
        axes.set_xlabel("round")
        axes.set_xticks(rounds)
        axes.set_ylabel("Rouge-L")
        axes.grid(alpha=0.3)
        axes.legend()
        self._folder.attempt(lambda: figure.savefig(self._folder.path / "rouge.png", dpi=120))

    def _table(self) -> str:
        first, last = self._utility[0], self._utility[-1]
        rows = {
            "beta, training": f"{self._config.beta}, {self._config.training}",
            f"Rouge-L of {last.rouge_l.total} held-out responses": (
                f"before {first.rouge_l}\nafter  {last.rouge_l}"
            ),
            "accuracy of held-out classifications": (
                f"before {first.accuracy or '-'}\nafter  {last.accuracy or '-'}"
            ),
            "memorisation (Rouge-L of private responses)": (
                f"before {_shown(self._memorisation[0])}\nafter  {_shown(self._memorisation[-1])}"
            ),
            "Rouge-L of synthetic and closest private text": (
                f"{np.mean(self._synthetic):.3f}; at most {self._copied} words in a row"
                if self._synthetic
                else "no synthetic data"
            ),
            "synthetic examples of a client in a round": (
                f"{np.mean(self._selected):.1f} of {self._config.num_selected}; none "
                f"{self._selected.count(0)} of {len(self._selected)} times"
                if self._selected
                else "none wanted"
            ),
            "bytes per round, all clients": ", ".join(f"{size:,}" for size in self._bytes),
            "replies rejected, failed": f"{self._rejected}, {self._failures}",
            "time": f"{time.monotonic() - self._start:.0f} s",
            "run folder": str(self._folder.path),
        }
        return render("FedPIT", rows)


def _average(values: list[dict[str, Any]], key: str) -> float | None:
    """Return the mean over all examples; None if nobody reported a share."""
    there = [v for v in values if _shares([v], key)]
    if not there:
        return None
    return float(np.average(_shares(there, key), weights=[v["num-examples"] for v in there]))


def _shares(values: list[dict[str, Any]], key: str) -> list[float]:
    """Return what nodes report of something that lies in [0, 1]; not what else they may say."""
    return [float(v[key]) for v in values if key in v and 0 <= v[key] <= 1]


def _counts(values: list[dict[str, Any]], key: str, most: int) -> list[int]:
    """Return what nodes report of something that is counted; not what is no such number."""
    return [int(v[key]) for v in values if key in v and v[key] in range(most + 1)]


def _describe(utility: Utility) -> dict[str, Any]:
    mean = asdict(utility.rouge_l)
    accuracy = utility.accuracy
    return {
        "rouge-l": mean["value"],
        "rouge-l-interval-95": [mean["low"], mean["high"]],
        "held-out": mean["total"],
        "accuracy": accuracy.value if accuracy else None,
        "accuracy-interval-95": [accuracy.low, accuracy.high] if accuracy else None,
        "classified": accuracy.total if accuracy else 0,
    }


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"
