"""A node's own file: read, checked and split on the node, and described without its content.

What goes wrong on a node is reported to the server. No message of this module therefore holds a
cell of the file, a column's name or a label that the operator did not write into the node config.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from feddtpt_flwr.data.cleaning import Repeats, check_values, is_missing, loose_key, prepare
from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.readers import read_table
from feddtpt_flwr.data.sampling import ClientData, draw, to_examples
from feddtpt_flwr.data.task import Example, Task, label_key


@dataclass(frozen=True)
class OwnFile:
    """Where a node's examples lie, and how its words differ from the task's.

    Attributes
    ----------
    path : Path
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file with named columns.
    columns : mapping of str to str
        The task's column for a column of the file, e.g. ``{"review": "text"}``. Columns not named
        keep their names.
    labels : mapping of str to str
        The task's label for a value in the file, e.g. ``{"bad": "0"}``. Values not named stay as
        they are.
    """

    path: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def read(self, task: Task) -> tuple[Example, ...]:
        """Read and check all rows; a text that is repeated counts once.

        Texts are the same whatever their case, white space and Unicode's forms.

        Raises
        ------
        DataError
            If the file is missing or cannot be read, a column is missing (one that ``columns``
            names, too), a cell is empty or no single value, or a label is not one of the task's.
        """
        return self.read_and_count(task)[0]

    def read_and_count(self, task: Task) -> tuple[tuple[Example, ...], Repeats]:
        """Read and check all rows as `read`; return also how many were left out."""
        self._check_mappings(task)
        frame = read_table(self.path)
        for ours, theirs in self.columns.items():
            if ours not in frame.columns:
                raise DataError(
                    f"data-columns: '{ours}={theirs}': {self.path} has no column {ours!r}; needed "
                    "before '=' is a column's name as the file writes it"
                )
        frame = frame.rename(columns=dict(self.columns))
        for column in (*task.text_columns, task.label_column):
            if column not in frame.columns:
                raise DataError(
                    f"{self.path}: none of its {len(frame.columns)} columns is called {column!r}; "
                    f"the first line of CSV and TSV files names the columns, and data-columns maps "
                    f"other names, as in data-columns='other={column}'"
                )
            if list(frame.columns).count(column) > 1:
                raise DataError(
                    f"{self.path}: there is more than one column {column!r}; data-columns must "
                    "not give a column the name of another"
                )
        check_values(frame, [task.label_column], str(self.path))
        labels = [
            self.labels.get(label_key(value), value) for value in frame[task.label_column].tolist()
        ]
        declared = {label_key(label) for label in task.labels}
        # A missing label is told of with its row, further on.
        keys = [label_key(label) for label in labels if not is_missing(label)]
        strange = Counter(key for key in keys if key not in declared)
        if strange:
            raise DataError(
                f"{self.path}: {strange.total()} of {len(labels)} rows hold {len(strange)} labels "
                f"in column {task.label_column!r} that task {task.name!r} does not declare; "
                f"declared: {sorted(declared)}; data-labels maps others, as in "
                f"data-labels='other={label_key(task.labels[0])}'"
            )
        frame[task.label_column] = labels
        examples = to_examples(task, prepare(frame, task, str(self.path)))
        pairs = [(loose_key(example.input), example) for example in examples]
        unique: dict[str, Example] = {}
        for key, example in pairs:
            unique.setdefault(key, example)
        return tuple(unique.values()), Repeats.among((key, e.label) for key, e in pairs)

    def _check_mappings(self, task: Task) -> None:
        columns = {*task.text_columns, task.label_column}
        labels = {label_key(label) for label in task.labels}
        for key, mapping, allowed in (
            ("data-columns", self.columns, columns),
            ("data-labels", self.labels, labels),
        ):
            for ours, theirs in mapping.items():
                if theirs not in allowed:
                    raise DataError(
                        f"{key}: '{ours}={theirs}': task {task.name!r} has no {theirs!r}; allowed "
                        f"after '=': {', '.join(sorted(allowed))}"
                    )


def split_own(
    file: OwnFile, task: Task, *, k_shot: int, seed: int, shared: Collection[str] = ()
) -> ClientData:
    """Draw a node's training and validation examples from its file; warn of repeated texts.

    Parameters
    ----------
    file : OwnFile
        The file.
    task : Task
        The task.
    k_shot : int
        Training examples per class, 1 or more, and as many others to validate on.
    seed : int
        The run's seed, 0 or more.
    shared : collection of str
        Inputs that others hold too, such as the public set's; they are left out, whatever their
        case.

    Raises
    ------
    DataError
        If a class has too few examples, or the file is not as `OwnFile.read` needs it.
    """
    known = set(map(loose_key, shared))
    there_are, repeats = file.read_and_count(task)
    repeats.warn(str(file.path))
    examples = [e for e in there_are if loose_key(e.input) not in known]
    there = count_by_class(examples, task)
    if any(count < 2 * k_shot for count in there.values()):
        counts = ", ".join(f"{answer!r} {count}" for answer, count in there.items())
        few = ", ".join(repr(answer) for answer, count in there.items() if count < 2 * k_shot)
        raise DataError(
            f"{file.path}: {2 * k_shot} examples of each class are needed (k-shot = {k_shot} to "
            f"train on and as many to validate on), too few are there of {few}; there are: {counts}"
        )
    return draw(
        examples,
        (),
        num_labels=task.num_labels,
        num_clients=1,
        k_shot=k_shot,
        public_per_class=0,
        test_size=0,
        partition="iid",
        dirichlet_alpha=1.0,
        seed=seed,
        class_names=task.answers,
    ).clients[0]


def count_by_class(examples: Collection[Example], task: Task) -> dict[str, int]:
    """Return the number of examples of each class, by its answer word."""
    counts = Counter(example.label for example in examples)
    return {answer: counts[label] for label, answer in enumerate(task.answers)}
