"""Few-shot data for every client, a public set for the server, and a test set.

The partitioners of ``flwr_datasets`` are not used here: they deal out a whole data set and can
promise neither exactly k examples per class and client nor a validation set of the same make-up,
and few-shot results with 8 or 16 examples move with every example more or less. Their Dirichlet
partitioner also draws one distribution per class over the clients, which makes clients of very
different size; here every client has the same number of examples and its own label distribution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.sources import Source
from feddtpt_flwr.data.task import Example, Task

if TYPE_CHECKING:
    import pandas as pd

Partition = Literal["iid", "dirichlet"]

_Counts = npt.NDArray[np.int64]

# One independent stream of random numbers for each purpose: a different number of public
# examples, say, must not change what the clients get.
_POOL, _LABELS, _ORDER, _TEST = range(4)


@dataclass(frozen=True)
class ClientData:
    """The examples of one client; no example is in both.

    Attributes
    ----------
    train, validation : tuple of Example
        Of the same length and with the same number of examples of each class, shuffled.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]


@dataclass(frozen=True)
class FederatedData:
    """All examples of a run; no example is in two places.

    Attributes
    ----------
    clients : tuple of ClientData
        One for each client.
    public : tuple of Example
        The server's class-balanced set.
    test : tuple of Example
        Held out for the final evaluation.
    """

    clients: tuple[ClientData, ...]
    public: tuple[Example, ...]
    test: tuple[Example, ...]


def draw(
    train_examples: Sequence[Example],
    test_examples: Sequence[Example],
    *,
    num_labels: int,
    num_clients: int,
    k_shot: int,
    public_per_class: int,
    test_size: int,
    partition: Partition,
    dirichlet_alpha: float,
    seed: int,
    class_names: Sequence[str] | None = None,
) -> FederatedData:
    """Draw every client's few-shot data, the public set and the test set.

    A client's data depends on the seed, the data, ``k_shot``, ``partition`` and
    ``dirichlet_alpha``: clients that both runs have get the same examples when the number of
    clients, the public set or the test set changes.

    Parameters
    ----------
    train_examples, test_examples : sequence of Example
        What to draw from. A text that is repeated, or is in the test examples too, counts once
        and never for training.
    num_labels : int
        Number of classes; labels are 0 to ``num_labels - 1``.
    num_clients : int
        Number of clients; 0 draws the public set and the test set alone.
    k_shot : int
        Training examples per class and client, 1 or more, and as many others to validate on.
        With ``partition="dirichlet"`` the average over the classes: a client still has
        ``k_shot * num_labels`` of each.
    public_per_class : int
        Examples per class of the public set, 0 or more.
    test_size : int
        Size of a class-stratified sample of the test examples; 0 takes them all.
    partition : {"iid", "dirichlet"}
        ``"iid"``: exactly ``k_shot`` of each class. ``"dirichlet"``: the label counts of each
        client follow its own draw from a symmetric Dirichlet distribution.
    dirichlet_alpha : float
        Concentration, above 0: small values give clients of nearly one class, large values
        balanced ones. Not used for ``"iid"``.
    seed : int
        0 or more.
    class_names : sequence of str, optional
        Names of the classes for messages.

    Returns
    -------
    FederatedData
        Same arguments, same result.

    Raises
    ------
    DataError
        If an argument is out of range, or a class or the test set has too few examples.
    """
    _check_arguments(num_labels, num_clients, k_shot, public_per_class, test_size, seed)
    counts = _label_counts(num_labels, num_clients, k_shot, partition, dirichlet_alpha, seed)
    test_inputs = {example.input for example in test_examples}
    unique: dict[str, Example] = {}
    for example in train_examples:
        unique.setdefault(example.input, example)
    pool = [example for example in unique.values() if example.input not in test_inputs]
    classes = _shuffled_classes(pool, num_labels, seed)
    names = class_names or [str(label) for label in range(num_labels)]
    for label, examples in enumerate(classes):
        needed = 2 * int(counts[:, label].sum()) + public_per_class
        if needed > len(examples):
            raise DataError(
                f"class {names[label]!r}: {needed} training examples are needed for "
                f"{num_clients} clients (train and validation) and the public set, "
                f"{len(examples)} are available; fewer clients are needed, or a lower k-shot or "
                "public-per-class"
            )
    # Clients are served from the front of each class and the public set from the back, so that
    # neither moves the other.
    public = [
        example for examples in classes for example in examples[len(examples) - public_per_class :]
    ]
    return FederatedData(
        clients=tuple(_deal(classes, counts, seed)),
        public=_shuffle(public, np.random.default_rng([seed, _ORDER])),
        test=_stratified(test_examples, num_labels, test_size, seed),
    )


def load_federated_data(
    task: Task,
    source: Source,
    *,
    num_clients: int,
    k_shot: int,
    public_per_class: int,
    test_size: int,
    partition: Partition,
    dirichlet_alpha: float,
    seed: int,
) -> FederatedData:
    """Load a task's rows, render them, and `draw` from them.

    Raises
    ------
    DataError
        If the source cannot be loaded or has too few examples; see `draw` for the parameters.
    """
    tables = source.load(task)
    if tables.test.empty:
        raise DataError(
            f"task {task.name!r}: there is no row to test on; more rows are needed, or a test-file"
        )
    return draw(
        to_examples(task, tables.train),
        to_examples(task, tables.test),
        num_labels=task.num_labels,
        num_clients=num_clients,
        k_shot=k_shot,
        public_per_class=public_per_class,
        test_size=test_size,
        partition=partition,
        dirichlet_alpha=dirichlet_alpha,
        seed=seed,
        class_names=task.answers,
    )


def to_examples(task: Task, frame: pd.DataFrame) -> tuple[Example, ...]:
    """Render each row of a table as an `Example`, in order."""
    return tuple(
        Example(task.render(row), task.label_index(row[task.label_column]))
        for row in cast("list[dict[str, object]]", frame.to_dict("records"))
    )


def largest_remainder(weights: npt.ArrayLike, total: int) -> _Counts:
    """Divide ``total`` in proportion to the weights into whole numbers that add up to it.

    Hamilton's method: round down, then give what is left to the largest remainders (the first
    of equals).

    Parameters
    ----------
    weights : array_like of float, shape (n,)
        Not negative, with a positive sum.
    total : int
        Number to divide, 0 or more.

    Returns
    -------
    numpy.ndarray of int64, shape (n,)
        Each less than 1 away from its exact share.
    """
    shares = np.asarray(weights, dtype=np.float64)
    exact = shares * total / shares.sum()
    counts: _Counts = np.floor(exact).astype(np.int64)
    left = total - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
    return counts


def _check_arguments(
    num_labels: int, num_clients: int, k_shot: int, public_per_class: int, test_size: int, seed: int
) -> None:
    least = {
        "num_labels": (num_labels, 2),
        "num_clients": (num_clients, 0),
        "k_shot": (k_shot, 1),
        "public_per_class": (public_per_class, 0),
        "test_size": (test_size, 0),
        "seed": (seed, 0),
    }
    for name, (value, minimum) in least.items():
        if value < minimum:
            raise DataError(f"{name} is {value}: {minimum} or more is needed")


def _label_counts(
    num_labels: int, num_clients: int, k_shot: int, partition: str, alpha: float, seed: int
) -> _Counts:
    """Return the training examples per client and class, shape (num_clients, num_labels)."""
    if partition == "iid":
        return np.full((num_clients, num_labels), k_shot, dtype=np.int64)
    if partition != "dirichlet":
        allowed = ", ".join(map(repr, get_args(Partition)))
        raise DataError(f"partition is {partition!r}: allowed are {allowed}")
    if not (np.isfinite(alpha) and alpha > 0):
        raise DataError(f"dirichlet_alpha is {alpha}: a number above 0 is needed")
    generators = [np.random.default_rng([seed, _LABELS, i]) for i in range(num_clients)]
    draws = [rng.dirichlet(np.full(num_labels, alpha)) for rng in generators]
    counts = [largest_remainder(shares, k_shot * num_labels) for shares in draws]
    return np.array(counts, dtype=np.int64).reshape(num_clients, num_labels)


def _shuffled_classes(
    examples: Sequence[Example], num_labels: int, seed: int
) -> list[tuple[Example, ...]]:
    """Group examples by class, each class in an order of its own."""
    groups: list[list[Example]] = [[] for _ in range(num_labels)]
    for example in examples:
        if not 0 <= example.label < num_labels:
            raise DataError(
                f"an example has label {example.label}: 0 to {num_labels - 1} is allowed"
            )
        groups[example.label].append(example)
    return [
        _shuffle(group, np.random.default_rng([seed, _POOL, label]))
        for label, group in enumerate(groups)
    ]


def _deal(classes: Sequence[Sequence[Example]], counts: _Counts, seed: int) -> Iterator[ClientData]:
    """Give each client its counts of each class, twice, one client after the other."""
    decks = [iter(examples) for examples in classes]
    for client, row in enumerate(counts.tolist()):
        rng = np.random.default_rng([seed, _ORDER, client])
        train, validation = (
            _shuffle([next(decks[label]) for label, n in enumerate(row) for _ in range(n)], rng)
            for _ in range(2)
        )
        yield ClientData(train=train, validation=validation)


def _stratified(
    examples: Sequence[Example], num_labels: int, size: int, seed: int
) -> tuple[Example, ...]:
    """Sample with the class proportions of all examples; all of them, as they are, for 0."""
    if size == 0:
        return tuple(examples)
    if size > len(examples):
        raise DataError(
            f"test-size = {size}: there are {len(examples)} test examples; 1 to {len(examples)} "
            "are allowed, or 0 for all"
        )
    groups = _shuffled_classes(examples, num_labels, seed)
    counts = largest_remainder([len(group) for group in groups], size)
    chosen = [e for group, n in zip(groups, counts.tolist(), strict=True) for e in group[:n]]
    return _shuffle(chosen, np.random.default_rng([seed, _TEST]))


def _shuffle(examples: Sequence[Example], rng: np.random.Generator) -> tuple[Example, ...]:
    return tuple(examples[i] for i in rng.permutation(len(examples)))
