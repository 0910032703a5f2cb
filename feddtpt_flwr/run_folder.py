"""What a run leaves behind: configuration, history, the learned prompt, a plot."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from feddtpt_flwr.statistics import Proportion


@dataclass(frozen=True)
class CurvePoint:
    """Held-out accuracy of the global prompt after so many queries of all clients."""

    queries: int
    accuracy: Proportion


class RunFolder:
    """A folder of its own for one run.

    Parameters
    ----------
    parent : Path
        Where run folders are made.
    name : str
        Beginning of the folder's name; the time of day follows.
    """

    def __init__(self, parent: Path, name: str) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        parent.mkdir(parents=True, exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{name}-{stamp}-", dir=parent)).resolve()
        self.path.chmod(0o755)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write ``config.toml``, which ``flwr run --run-config`` reads."""
        self._replace("config.toml", tomli_w.dumps(dict(config)))

    def append(self, event: str, **values: Any) -> None:
        """Append one line to ``history.jsonl``."""
        line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(), **values})
        with (self.path / "history.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def write_prompt(self, content: Mapping[str, Any]) -> None:
        """Write ``prompt.json``: the learned prompt with all that one needs to use it."""
        self.write_json("prompt.json", content)

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file in place of the one before."""
        self._replace(name, json.dumps(content, indent=2) + "\n")

    def plot(self, curve: Sequence[CurvePoint]) -> None:
        """Draw ``accuracy.png``: held-out accuracy against queries."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        queries = [point.queries for point in curve]
        accuracy = [point.accuracy.value for point in curve]
        low = [point.accuracy.low for point in curve]
        high = [point.accuracy.high for point in curve]
        axes.plot(queries, accuracy, marker="o")
        axes.fill_between(queries, low, high, alpha=0.2, label="95 % interval")
        axes.set_xlabel("LLM queries of all clients")
        axes.set_ylabel(f"accuracy on {curve[0].accuracy.total} held-out examples")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        figure.savefig(self.path / "accuracy.png", dpi=120)

    def _replace(self, name: str, text: str) -> None:
        # All or nothing: a reader never sees half a file, and a crash keeps the one before.
        temporary = self.path / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.path / name)
