"""What a run needs to go on after its last completed round, in one file of its run folder."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.common import log

from feddtpt_flwr import __version__
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task

CHECKPOINT_VERSION = 1
FILE_NAME = "checkpoint.json"

FREE_SETTINGS = frozenset(
    {
        "num-server-rounds",
        "resume",
        "run-folder",
        "round-timeout",
        "min-available-clients",
        "api-key-env",
        "masked-lm-key-env",
        "generator-key-env",
        "generator-price-per-million-input",
        "generator-price-per-million-output",
        "concurrency",
        "requests-per-minute",
        "tokens-per-minute",
        "timeout",
        "price-per-million-input",
        "price-per-million-output",
        "cache-size-mib",
        "queries-per-run",
        "tokens-per-run",
        "cost-per-run",
        "seconds-per-run",
        "trackers",
    }
)
"""Settings that a run may change when it goes on: limits of the run, waiting, services' access."""


@dataclass(frozen=True)
class Checkpoint:
    """A run after a completed round.

    Attributes
    ----------
    settings : Mapping[str, Any]
        The run's settings under their names in the configuration.
    task, held_out : str
        Fingerprints of the task and of the held-out examples.
    strategy, recorder : Mapping[str, Any]
        What their ``state_dict`` returned.
    history_lines : int
        Lines of ``history.jsonl`` at that time.
    num_clients : int
        Clients that were connected when the run began or went on; 0 if that is not known.
    run : str
        The name by which the clients know the run; empty if it is that of its folder.
    app_version : str
        Version of this app.
    version : int
        Version of this format.
    """

    settings: Mapping[str, Any]
    task: str
    held_out: str
    strategy: Mapping[str, Any]
    recorder: Mapping[str, Any]
    history_lines: int
    num_clients: int = 0
    run: str = ""
    app_version: str = __version__
    version: int = CHECKPOINT_VERSION

    @property
    def rounds(self) -> int:
        """The last completed round; 0 before the first."""
        return int(self.strategy["round"])

    def to_json(self) -> str:
        """Return the checkpoint as JSON text."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint":
        """Read the checkpoint in a run folder.

        Raises
        ------
        ConfigError
            If there is none, or none that this version of the app can read.
        """
        file = folder / FILE_NAME
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["version"] != CHECKPOINT_VERSION:
                raise ValueError(f"version {content['version']}, not {CHECKPOINT_VERSION}")
            return cls(**content)
        except FileNotFoundError:
            reason = f"there is no {file}; the folder of an earlier run is needed"
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"{file} is no checkpoint that this app can read ({error})"
        raise ConfigError(f"resume = {str(folder)!r}: {reason}")

    def check_settings(self, config: RunConfig, task: Task) -> None:
        """Compare the settings with those of the run that is to go on.

        Raises
        ------
        ConfigError
            If a setting or the task is not the same, or fewer rounds are wanted than there were;
            the message names the setting and both values.
        """
        settings = config.to_run_config()
        free = FREE_SETTINGS if config.privacy == "exponential" else FREE_SETTINGS | {"epsilon"}
        differing = [
            f"{key} = {value!r}: the run to resume has {self.settings[key]!r}"
            for key, value in settings.items()
            # A setting that a newer version of the app has brought is not in the checkpoint.
            if key not in free and self.settings.get(key, value) != value
        ]
        if differing:
            differing.append(
                f"a run goes on with its own settings, as in {config.resume}/resume.toml; only "
                f"these may change: {', '.join(sorted(FREE_SETTINGS - {'resume', 'run-folder'}))}"
            )
        elif fingerprint(task) != self.task:
            differing = [f"task = {config.task!r}: it is not as it was when the run began"]
        elif config.num_server_rounds < self.rounds:
            differing = [
                f"num-server-rounds = {config.num_server_rounds}: the run to resume has completed "
                f"{self.rounds}; as many or more are allowed"
            ]
        if differing:
            raise ConfigError("\n".join(differing))

    def check(
        self, config: RunConfig, task: Task, held_out: Sequence[Example], num_clients: int
    ) -> None:
        """Compare with the run that is to go on; ``num_clients`` are connected.

        Raises
        ------
        ConfigError
            As `check_settings`, or if the held-out examples are not the same.
        """
        self.check_settings(config, task)
        if examples_fingerprint(held_out) != self.held_out:
            raise ConfigError(
                "resume: the held-out examples are not those of the run to resume; its test file "
                f"or data-source = {config.data_source!r} has changed"
            )
        if config.clients == "simulated" and self.num_clients not in (0, num_clients):
            # No error: in a deployment a node may only be late.
            log(
                WARNING,
                "the run had %d clients and goes on with %d: simulated clients share the data "
                "among all that there are, so each has other examples now",
                self.num_clients,
                num_clients,
            )
        if self.app_version != __version__:
            log(
                WARNING,
                "the run was begun with version %s of this app and goes on with %s: "
                "what follows may differ from what it would have been",
                self.app_version,
                __version__,
            )


def fingerprint(value: Any) -> str:
    """Return a short hash of what a value says of itself."""
    return hashlib.blake2b(repr(value).encode(), digest_size=8).hexdigest()


def examples_fingerprint(examples: Sequence[Example]) -> str:
    """Return a short hash of examples and their order; no text can be read from it."""
    return fingerprint([(example.input, example.label) for example in examples])
