"""The history of a run in TensorBoard and MLflow, for those who watch their experiments there."""

import math
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from logging import WARNING, getLogger
from pathlib import Path
from typing import Any, Protocol

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.config_rules import tracker_names

_log = getLogger("flwr")


class Tracker(Protocol):
    """Something that follows a run."""

    def write(self, event: Mapping[str, Any]) -> None:
        """Take one line of ``history.jsonl``."""

    def close(self) -> None:
        """End: the run is over."""


def require(trackers: str) -> None:
    """Check that what the setting ``trackers`` names is installed.

    Raises
    ------
    ConfigError
        If it is not; the message says how to install it.
    """
    for name in tracker_names(trackers):
        if find_spec(name) is None:
            raise ConfigError(
                f"trackers = {trackers!r}: {name} is not installed here; install it with: "
                f"pip install 'feddtpt-flwr[{name}]'"
            )


def open_all(config: RunConfig, folder: Path) -> list[Tracker]:
    """Begin to track a run.

    Parameters
    ----------
    config : RunConfig
        Settings of the run; ``trackers`` says what tracks it.
    folder : Path
        The run's folder; its name is the name of the run.

    Raises
    ------
    ConfigError
        If a tracker cannot be reached.
    """
    return [_Steady(name, _open(name, config, folder)) for name in tracker_names(config.trackers)]


def _open(name: str, config: RunConfig, folder: Path) -> Tracker:
    try:
        return TensorBoard(folder) if name == "tensorboard" else MLflow(config, folder.name)
    except Exception as error:
        # Not its text: an address may hold a password.
        raise ConfigError(
            f"trackers = {config.trackers!r}: {name} cannot be used ({type(error).__name__})"
        ) from None


class TensorBoard:
    """Writes event files to ``tensorboard/`` in the run folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder / "tensorboard"))

    def write(self, event: Mapping[str, Any]) -> None:
        """Write the event's numbers, and its prompt as text."""
        step = event.get("round", 0)
        for tag, value in numbers(event).items():
            self._writer.add_scalar(tag, value, step)
        if prompt := event.get("prompt"):
            self._writer.add_text("prompt", prompt, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """Writes a run to the MLflow server or database that ``MLFLOW_TRACKING_URI`` names.

    The settings are its parameters; its experiment is ``MLFLOW_EXPERIMENT_NAME``, else MLflow's
    default. The last prompt is its tag ``prompt``.
    """

    def __init__(self, config: RunConfig, name: str) -> None:
        import mlflow

        self._mlflow = mlflow
        self._run_id = mlflow.start_run(run_name=name).info.run_id
        mlflow.log_params(config.to_run_config())

    def write(self, event: Mapping[str, Any]) -> None:
        """Write the event's numbers, and its prompt as a tag."""
        step = event.get("round", 0)
        self._mlflow.log_metrics(numbers(event), step=step, run_id=self._run_id)
        if prompt := event.get("prompt"):
            self._mlflow.set_tag("prompt", prompt)

    def close(self) -> None:
        """End the run there."""
        self._mlflow.end_run()


class _Steady:
    """A tracker whose failure costs a warning, and not the run."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker: Tracker | None = tracker

    def write(self, event: Mapping[str, Any]) -> None:
        self._try(lambda tracker: tracker.write(event))

    def close(self) -> None:
        self._try(lambda tracker: tracker.close())

    def _try(self, step: Callable[[Tracker], None]) -> None:
        if self._tracker is None:
            return
        try:
            step(self._tracker)
        except Exception as error:
            self._tracker = None
            kind = type(error).__name__  # its text may hold a password
            _log.log(WARNING, "%s fails and gets no more of this run: %s", self._name, kind)


def numbers(event: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line of the history, by the names under which they are tracked.

    Returns
    -------
    dict
        ``round/accuracy``, ``round/queries``, …; ``search/north/accuracy``, … of client ``north``;
        ``candidates/aggregate``, … the share of right answers of each candidate that was scored.
    """
    kind = "round" if event["event"] == "start" else str(event["event"])
    prefix = f"{kind}/{event['client']}" if "client" in event else kind
    found = {f"{prefix}/{key}": value for key, value in event.items() if key != "round"}
    for candidate in event.get("candidates", ()):
        if candidate["total"]:
            share = candidate["correct"] / candidate["total"]
            found[f"candidates/{candidate['origin']}"] = share
    return {_tag(name): float(value) for name, value in found.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _tag(name: str) -> str:
    """Return a name that MLflow accepts, too; a client chooses its own."""
    return re.sub(r"[^\w\-. /]", "_", name)
