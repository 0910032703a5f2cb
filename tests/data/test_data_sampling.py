from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddtpt_flwr.data import (
    DataError,
    Example,
    FederatedData,
    Tables,
    Task,
    draw,
    get_task,
    load_federated_data,
)
from feddtpt_flwr.data.sampling import largest_remainder


def examples(prefix: str, *sizes: int) -> list[Example]:
    return [Example(f"{prefix} {c} {i}", c) for c, size in enumerate(sizes) for i in range(size)]


TRAIN = examples("train", 300, 300, 300)
TEST = examples("test", 60, 30, 10)

DEFAULTS: dict[str, Any] = {
    "num_labels": 3,
    "num_clients": 4,
    "k_shot": 5,
    "public_per_class": 6,
    "test_size": 50,
    "partition": "iid",
    "dirichlet_alpha": 0.5,
    "seed": 7,
}


def drawn(**changes: Any) -> FederatedData:
    return draw(TRAIN, TEST, **{**DEFAULTS, **changes})


def counts(of: Iterable[Example], num_labels: int = 3) -> list[int]:
    counter = Counter(example.label for example in of)
    return [counter[label] for label in range(num_labels)]


def everything(data: FederatedData) -> list[Example]:
    parts = [part for client in data.clients for part in (client.train, client.validation)]
    return [example for part in (*parts, data.public, data.test) for example in part]


def test_iid_clients_have_exactly_k_of_each_class() -> None:
    data = drawn()
    assert len(data.clients) == 4
    for client in data.clients:
        assert counts(client.train) == [5, 5, 5]
        assert counts(client.validation) == [5, 5, 5]
    assert counts(data.public) == [6, 6, 6]


def test_test_sample_keeps_the_class_shares() -> None:
    assert counts(drawn(test_size=50).test) == [30, 15, 5]
    assert counts(drawn(test_size=7).test) == [4, 2, 1]
    assert drawn(test_size=0).test == tuple(TEST)
    assert sorted(drawn(test_size=100).test, key=str) == sorted(TEST, key=str)


@settings(max_examples=40, deadline=None)
@given(
    num_clients=st.integers(0, 5),
    k_shot=st.integers(1, 8),
    public_per_class=st.integers(0, 10),
    partition=st.sampled_from(["iid", "dirichlet"]),
    dirichlet_alpha=st.floats(0.01, 100),
    seed=st.integers(0, 2**32),
)
def test_everything_is_disjoint_and_complete(**changes: Any) -> None:
    data = drawn(**changes)
    taken = everything(data)
    assert len(set(taken)) == len(taken)
    per_client = changes["k_shot"] * 3
    for client in data.clients:
        assert len(client.train) == len(client.validation) == per_client
        assert counts(client.train) == counts(client.validation)
    assert counts(data.public) == [changes["public_per_class"]] * 3


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_same_seed_same_result(partition: str) -> None:
    assert drawn(partition=partition) == drawn(partition=partition)
    assert drawn(partition=partition) != drawn(partition=partition, seed=8)


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
@pytest.mark.parametrize("change", [{"public_per_class": 0}, {"test_size": 3}, {"num_clients": 2}])
def test_clients_do_not_move_with_other_settings(partition: str, change: dict[str, int]) -> None:
    one, other = drawn(partition=partition), drawn(partition=partition, **change)
    assert all(a == b for a, b in zip(one.clients, other.clients, strict=False))


def test_examples_are_not_in_class_order() -> None:
    data = drawn(k_shot=20)
    labels = [example.label for example in data.clients[0].train]
    assert labels != sorted(labels)


def skew(alpha: float) -> float:
    data = drawn(partition="dirichlet", dirichlet_alpha=alpha, num_clients=6, k_shot=6)
    return float(np.mean([max(counts(client.train)) for client in data.clients]))


def test_small_alpha_is_more_skewed() -> None:
    assert skew(1000.0) <= 8
    assert skew(0.05) > 13


def test_repeated_texts_count_once() -> None:
    train = [Example("a", 0), Example("a", 1), Example("b", 1), Example("t", 0), Example("c", 0)]
    data = draw(
        [*train, Example("d", 1)],
        [Example("t", 0)],
        **{**DEFAULTS, "num_labels": 2, "num_clients": 1, "k_shot": 1, "public_per_class": 0}
        | {"test_size": 0},
    )
    taken = everything(data)
    assert sorted(example.input for example in taken) == ["a", "b", "c", "d", "t"]
    assert Example("a", 0) in taken


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 1}, "num_labels is 1: 2 or more is needed"),
        ({"num_clients": -1}, "num_clients is -1: 0 or more is needed"),
        ({"k_shot": 0}, "k_shot is 0: 1 or more is needed"),
        ({"public_per_class": -1}, "public_per_class is -1: 0 or more is needed"),
        ({"test_size": -1}, "test_size is -1: 0 or more is needed"),
        ({"seed": -1}, "seed is -1: 0 or more is needed"),
        ({"partition": "shards"}, "partition is 'shards': allowed are 'iid', 'dirichlet'"),
        ({"partition": "dirichlet", "dirichlet_alpha": 0.0}, "dirichlet_alpha is 0.0: a number"),
        ({"partition": "dirichlet", "dirichlet_alpha": np.inf}, "dirichlet_alpha is inf"),
        (
            {"test_size": 101},
            "test-size = 101: there are 100 test examples; 1 to 100 are allowed",
        ),
        ({"num_labels": 2}, "an example has label 2: 0 to 1 is allowed"),
        ({"k_shot": 40}, "class '0': 326 training examples are needed .* 300 are available"),
        (
            {"k_shot": 40, "class_names": ["bad", "so", "good"]},
            "class 'bad': 326 training examples are needed",
        ),
        (
            {"partition": "dirichlet", "dirichlet_alpha": 0.01, "k_shot": 30},
            "training examples are needed for 4 clients",
        ),
    ],
)
def test_impossible_request_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        drawn(**changes)


@settings(deadline=None)
@given(
    weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6),
    total=st.integers(0, 1000),
)
def test_largest_remainder_divides_exactly(weights: list[float], total: int) -> None:
    result = largest_remainder(weights, total)
    exact = np.asarray(weights) * total / sum(weights)
    assert result.sum() == total
    assert (result >= 0).all()
    assert (np.abs(result - exact) < 1 + 1e-9).all()


def test_largest_remainder_gives_ties_to_the_first() -> None:
    assert largest_remainder([1, 1, 1], 4).tolist() == [2, 1, 1]


class TwoClassSource:
    """A user's own source: any object with this one method."""

    def load(self, task: Task) -> Tables:
        def rows(prefix: str, n: int) -> pd.DataFrame:
            return pd.DataFrame(
                {"text": [f"{prefix} {i}" for i in range(n)], "label": [i % 2 for i in range(n)]}
            )

        return Tables(train=rows("train", 40), test=rows("test", 10))


def test_load_federated_data_renders_the_task() -> None:
    settings = {key: value for key, value in DEFAULTS.items() if key != "num_labels"}
    settings |= {"num_clients": 2, "k_shot": 3, "test_size": 4}
    data = load_federated_data(get_task("rotten_tomatoes"), TwoClassSource(), **settings)
    assert counts(data.clients[1].train, 2) == [3, 3]
    assert counts(data.test, 2) == [2, 2]
    assert all(example.input.startswith("Review: train ") for example in data.public)
    with pytest.raises(DataError, match="class 'negative': 46 training examples"):
        load_federated_data(
            get_task("rotten_tomatoes"), TwoClassSource(), **{**settings, "k_shot": 10}
        )
