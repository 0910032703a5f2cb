"""Suites: files that say which runs answer a question."""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from feddtpt_flwr.client_limits import (
    Sizes,
    most_scored,
    num_compared,
    too_few_in_run,
    too_few_queries,
)
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import DataError
from feddtpt_flwr.experiment import load_task
from simulations import soft_prompts

SUITES = Path(__file__).parent / "suites"
AXES = ("models", "tasks", "partitions", "methods", "budgets")
WHAT, NUM_CLIENTS, NUM_SEEDS, BASELINE = "what", "num-clients", "num-seeds", "baseline"

BASELINES = tuple(soft_prompts.TUNERS)
"""Methods that are not the app: see `simulations.soft_prompts`."""

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Value = str | bool | int | float


def _scalar(value: Any) -> Any:
    if not isinstance(value, Value):
        raise ValueError("a text, a number, true or false is needed")
    return value


Settings = dict[str, Annotated[Value, PlainValidator(_scalar)]]


class SuiteError(ValueError):
    """A suite's file is not what it has to be; the message names file, key, value and what is."""


@dataclass(frozen=True)
class Job:
    """One run of a suite.

    Attributes
    ----------
    labels : tuple[str, ...]
        What it is on each of `AXES`; empty on one that the suite does not have.
    seed : int
        The run's seed.
    num_clients : int
        Simulated clients.
    settings : tuple[tuple[str, Value], ...]
        Settings of the app, sorted by name, variables put in, without the seed.
    unset : tuple[str, ...]
        Environment variables that the settings name and that are not set.
    baseline : str
        One of `BASELINES`; empty for the app.
    """

    labels: tuple[str, ...]
    seed: int
    num_clients: int
    settings: tuple[tuple[str, Value], ...]
    unset: tuple[str, ...] = ()
    baseline: str = ""

    @property
    def key(self) -> str:
        """A name that no other run of the suite has; a relative path."""
        return "/".join([*(label for label in self.labels if label), f"seed{self.seed}"])

    def label(self, axis: str) -> str:
        """Return what the run is on ``axis``."""
        return self.labels[AXES.index(axis)]

    @property
    def config(self) -> RunConfig:
        """The run's settings, checked: `ConfigError` says what is not allowed."""
        return RunConfig.from_run_config({**dict(self.settings), "seed": self.seed})


class Suite(BaseModel):
    """A grid of runs.

    Every axis holds named groups of settings, and there is a run for every combination of one group
    of each axis and a seed. A group may hold ``what``, a description, ``num-clients``,
    ``num-seeds``, where the first so many of the seeds are enough, and ``baseline``, one of
    `BASELINES`; all else are settings of the app. Later axes win over earlier ones, and all over
    ``settings``. In texts, ``${NAME}`` stands for an environment variable.

    Parameters
    ----------
    name : str
        The file's name without its ending.
    title, question : str
        What the suite is, and what it answers.
    seeds : tuple[int, ...]
        At least one.
    num_clients : int
        Simulated clients where no group says otherwise.
    compare : str
        The method that the others are compared with, seed by seed; by default the first.
    transfer : bool
        Whether every learned prompt is also tried on the suite's other models.
    settings : dict
        Settings of every run.
    models, tasks, partitions, methods, budgets : dict
        The axes; an empty one leaves things as they are.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    name: str
    title: str = Field(min_length=1)
    question: str = Field(min_length=1)
    seeds: tuple[int, ...] = Field(min_length=1)
    num_clients: int = Field(10, ge=1)
    compare: str = ""
    transfer: bool = False
    settings: Settings = {}
    models: dict[str, Settings] = {}
    tasks: dict[str, Settings] = {}
    partitions: dict[str, Settings] = {}
    methods: dict[str, Settings] = {}
    budgets: dict[str, Settings] = {}

    def axis(self, name: str) -> dict[str, Settings]:
        """Return the groups of one of `AXES`."""
        groups: dict[str, Settings] = getattr(self, name)
        return groups

    def what(self, axis: str, label: str) -> str:
        """Return a group's description, or its label if it has none."""
        return str(self.axis(axis).get(label, {}).get(WHAT, label))

    def jobs(
        self,
        only: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        seeds: int | None = None,
    ) -> list[Job]:
        """Return all runs, seed after seed, so that a suite that was stopped has whole seeds.

        Parameters
        ----------
        only : Sequence[str]
            Labels; of each axis that they are on, a run must have one of them.
        environment : Mapping[str, str], optional
            Where variables are looked up; by default the process's.
        seeds : int, optional
            How many of the suite's seeds, from the first on; by default all.

        Raises
        ------
        SuiteError
            If ``only`` holds a label that no group has.
        """
        axes = [self.axis(axis).keys() for axis in AXES]
        known = set().union(*axes)
        if unknown := [label for label in only if label not in known]:
            raise SuiteError(
                f"suite {self.name}: no group is called {unknown[0]!r}; there are: "
                f"{', '.join(sorted(known))}"
            )
        variables = os.environ if environment is None else environment
        wanted = [labels & set(only) for labels in axes]

        def chosen(job: Job) -> bool:
            pairs = zip(job.labels, wanted, strict=True)
            return all(not labels or label in labels for label, labels in pairs)

        return [
            job
            for job in self._all_jobs(variables)
            if chosen(job) and job.seed in self.seeds[:seeds]
        ]

    def _all_jobs(self, variables: Mapping[str, str]) -> Iterator[Job]:
        groups = [self.axis(axis) or {"": {}} for axis in AXES]
        for (place, seed), labels in product(enumerate(self.seeds), product(*groups)):
            merged: Settings = {NUM_CLIENTS: self.num_clients, **self.settings}
            for axis, label in zip(groups, labels, strict=True):
                merged |= axis[label]
            merged.pop(WHAT, None)
            num_clients = int(merged.pop(NUM_CLIENTS))
            if place >= int(merged.pop(NUM_SEEDS, len(self.seeds))):
                continue
            baseline = str(merged.pop(BASELINE, ""))
            # A run that began with some of its clients would not be the same the next time.
            merged.setdefault("min-available-clients", num_clients)
            names = {n for v in merged.values() if isinstance(v, str) for n in _VARIABLE.findall(v)}
            unset = tuple(sorted(names - set(variables)))
            settings = tuple(sorted((key, _fill(v, variables)) for key, v in merged.items()))
            yield Job(labels, seed, num_clients, settings, unset, baseline)


def _fill(value: Value, variables: Mapping[str, str]) -> Value:
    if not isinstance(value, str):
        return value
    return _VARIABLE.sub(lambda match: variables.get(match[1], match[0]), value)


def most_queries(job: Job) -> int:
    """Return the most queries that a run's clients may ask, in their searches and comparisons."""
    config = job.config
    task = load_task(config)
    searching = max(1, round(config.fraction_fit * job.num_clients))
    scoring = max(1, round(config.fraction_evaluate * job.num_clients))
    # Each takes its share of the examples, all together not many more than are wanted.
    shared = config.model_copy(update={"race_examples": -(-config.race_examples // scoring)})
    own = most_scored(shared, 2 * config.k_shot * task.num_labels)
    # Soft prompts are averaged, not compared.
    race = 0 if job.baseline else num_compared(config) * own
    rounds = config.num_server_rounds * (searching * config.queries_per_round + scoring * race)
    return (
        min(rounds, job.num_clients * config.queries_per_run) if config.queries_per_run else rounds
    )


def load_suite(name_or_path: str) -> Suite:
    """Read a suite of `SUITES` by name, or any by the path of its ``.toml`` file, and check it.

    A file with ``base = "other.toml"`` takes what it does not say itself from that file beside it.

    Raises
    ------
    SuiteError
        If there is none, or something in it is not allowed; no run has begun then.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = SUITES / f"{name_or_path}.toml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in SUITES.glob("*.toml")))
            raise SuiteError(f"no suite is called {name_or_path!r}; there are: {known}")
    content = _read(path)
    try:
        suite = Suite.model_validate({**_tuples(content), "name": path.stem})
    except ValidationError as error:
        raise SuiteError("\n".join(_explain(path, e) for e in error.errors())) from None
    if mistakes := list(_mistakes(suite)):
        raise SuiteError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    return suite


def _read(path: Path, depth: int = 0) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise SuiteError(f"{path}: there is no such file") from None
    except ValueError as error:
        raise SuiteError(f"{path}: {error}") from None
    base = content.pop("base", None)
    if base is None:
        return content
    if not isinstance(base, str) or depth:
        raise SuiteError(f"{path}: base = {base!r}: the name of a suite without a base is needed")
    return {**_read(path.parent / base, depth + 1), **content}


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    seeds = content.get("seeds")
    return {**content, "seeds": tuple(seeds)} if isinstance(seeds, list) else content


def _mistakes(suite: Suite) -> Iterator[str]:
    for axis in AXES:
        for label in suite.axis(axis):
            if not re.match(_LABEL, label):
                yield f"{axis}.{label}: a label has letters, digits, '.', '_' and '-' only"
    if len(set(suite.seeds)) < len(suite.seeds) or min(suite.seeds) < 0:
        yield f"seeds = {list(suite.seeds)}: different whole numbers from 0 are needed"
    if suite.compare and suite.compare not in suite.methods:
        yield f"compare = {suite.compare!r}: one of methods is needed: {', '.join(suite.methods)}"
    if suite.transfer and len(suite.models) < 2:
        yield "transfer = true: two or more models are needed"
    if uncounted := list(_uncounted(suite)):
        yield from uncounted
        return  # without them it is not known which runs there are
    told: set[str] = set()
    for job in suite.jobs():
        if job.baseline and job.baseline not in BASELINES:
            yield f"{job.key}: baseline = {job.baseline!r}: allowed are {', '.join(BASELINES)}"
        if (mistake := _mistake(job)) and mistake not in told:
            told.add(mistake)
            yield f"{job.key}: {mistake}"


def _uncounted(suite: Suite) -> Iterator[str]:
    """Yield what is to be a number of clients or seeds, and is none."""
    groups = {f"{axis}.{label}": g for axis in AXES for label, g in suite.axis(axis).items()}
    for where, group in {"settings": suite.settings, **groups}.items():
        for key in (NUM_CLIENTS, NUM_SEEDS):
            value = group.get(key, 1)
            if type(value) is not int or value < 1:
                yield f"{where}.{key} = {value!r}: a whole number from 1 is needed"


def _mistake(job: Job) -> str:
    """Return what is wrong with a run's settings; empty if nothing is."""
    if own := {"seed", "run-folder"} & dict(job.settings).keys():
        return f"{', '.join(sorted(own))}: the suite's to set"
    try:
        if (needed := job.config.min_available_clients) > job.num_clients:
            return (
                f"min-available-clients = {needed}: at most num-clients, {job.num_clients}, "
                "will be there"
            )
        # A task's file may be on another machine than this.
        return "" if job.config.task.endswith(".toml") else _too_few_queries(job)
    except (ConfigError, DataError) as error:
        return str(error)


def _too_few_queries(job: Job) -> str:
    """Return why a run's clients have too few queries to begin; empty if they have enough.

    Of the examples their numbers alone matter, and these the settings tell; of clients with data of
    their own they do not.
    """
    config = job.config
    sizes = Sizes.wanted(config, load_task(config))
    if config.clients == "own-data":
        return ""
    if job.baseline in BASELINES:
        budget, examples = config.queries_per_round, sizes.train + sizes.public
        return soft_prompts.too_few_queries(job.baseline, budget, examples)
    return too_few_queries(config, sizes) or too_few_in_run(config, sizes, job.num_clients)


def _explain(path: Path, error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "missing":
        return f"{path}: {key} is missing"
    if error["type"] == "extra_forbidden":
        known = ", ".join(n.replace("_", "-") for n in Suite.model_fields if n != "name")
        return f"{path}: unknown key {key!r}; keys: base, {known}"
    return f"{path}: {key} = {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
