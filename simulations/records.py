"""Runs as the JSON files of reports hold them: for other tables, and for suites to go on from."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from simulations.outcome import CurvePoint, Outcome, describe
from simulations.suite import AXES, Job, Suite

FOLDER, SETTINGS = "run-folder", "settings-sha256"

Record = dict[str, Any]

_FIELDS = {
    f.name: f.default is MISSING for f in fields(Outcome) if f.name not in ("folder", "config")
}
"""Of a run, and whether each must be there."""


def as_record(outcome: Outcome, job: Job, folder: Path) -> Record:
    """Return a run with its place in its suite.

    Parameters
    ----------
    outcome : Outcome
        What the run gave.
    job : Job
        What it was to be.
    folder : Path
        That of all suites' runs, in which ``run-folder`` is: where it lies on this machine concerns
        nobody else.

    Returns
    -------
    Record
        With ``settings-sha256``, a fingerprint of all settings; without, if files of this machine
        are among them, of which a path says nothing.
    """
    place = {axis: label for axis, label in zip(AXES, job.labels, strict=True) if label}
    given = {name: getattr(outcome, name) for name in _FIELDS}
    given["curve"] = [asdict(point) for point in outcome.curve]
    record = {**place, "seed": job.seed, **given}
    record[FOLDER] = outcome.folder.relative_to(folder).as_posix()
    return record if _names_files(job) else {**record, SETTINGS: fingerprint(job)}


def place_of(record: Mapping[str, Any]) -> str:
    """Return which run of its suite a record is, to be shown."""
    labels = [str(record[axis]) for axis in AXES if record.get(axis)]
    return " / ".join([*labels, f"seed {record['seed']}"])


def read_records(file: Path) -> list[Record]:
    """Return the runs of a report.

    Raises
    ------
    ValueError
        If the file is none of runs; the message names the file.
    """
    try:
        records = json.loads(file.read_text(encoding="utf-8"))["runs"]
        for record in records:
            place_of(record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{file} is not a suite's file of runs") from None
    return list(records)


class Kept:
    """The runs of all suites' reports: completed, wherever that was.

    Parameters
    ----------
    folder : Path
        With a JSON file for each report.
    own : str, optional
        The suite whose own report counts before those of others.

    Raises
    ------
    ValueError
        If a suite's file is none of runs, or one lacks something; the message names it.
    """

    def __init__(self, folder: Path, own: str = "") -> None:
        self._folder = folder
        self._records: dict[str, Record] = {}
        for file in sorted(suites_files(folder), key=lambda file: file.stem == own):
            for record in read_records(file):
                if SETTINGS not in record:
                    continue
                if lacking := [
                    name for name, must in _FIELDS.items() if must and name not in record
                ]:
                    raise ValueError(f"{file}: {place_of(record)} has no {lacking[0]!r}")
                self._records[record[SETTINGS]] = record

    def find(self, job: Job, folder: Path) -> Outcome | None:
        """Return what a run gave, if a report has it; ``folder`` is as for `as_record`."""
        record = None if _names_files(job) else self._records.get(fingerprint(job))
        if record is None:
            return None
        given = {name: record[name] for name in _FIELDS if name in record}
        given["num_bytes"] = tuple(given["num_bytes"])
        given["curve"] = tuple(CurvePoint(**point) for point in given["curve"])
        return Outcome(folder=folder / record[FOLDER], config=job.config, **given)

    def unlike(self, suite: Suite) -> list[str]:
        """Return which runs of a suite's own report do not count, since their settings are others.

        Or they are not known, as of runs on files.
        """
        file = self._folder / f"{suite.name}.json"
        wanted = {fingerprint(job) for job in suite.jobs() if not _names_files(job)}
        records = read_records(file) if file.exists() else []
        return [place_of(record) for record in records if record.get(SETTINGS) not in wanted]


def fingerprint(job: Job) -> str:
    """Return what tells a run from all others: a hash of its settings."""
    return sha256(json.dumps(describe(job), sort_keys=True).encode()).hexdigest()


def _names_files(job: Job) -> bool:
    """Return whether a run reads files or models that lie on this machine."""
    config = job.config
    models = (config.language_model, config.masked_lm)
    return bool(
        config.train_file
        or config.test_file
        or config.task.endswith(".toml")
        or any(Path(model).exists() for model in models)
    )


def suites_files(folder: Path) -> Iterator[Path]:
    """Yield the reports' files among those of other comparisons and benchmarks."""
    for file in sorted(folder.glob("[!.]*.json")):
        if file.is_file() and '"suite":' in file.read_text(encoding="utf-8")[:200]:
            yield file
