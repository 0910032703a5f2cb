from collections import Counter

import pytest

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.round_examples import RoundExamples

ROUNDS = range(1, 9)


def some(number: int, labels: int, name: str) -> tuple[Example, ...]:
    return tuple(Example(f"{name} {index}", index % labels) for index in range(number))


def examples(
    queries: int, server_round: int = 1, *, labels: int = 2, train: int = 32, public: int = 16
) -> RoundExamples:
    """Of a client with as many validation examples as training examples."""
    config = RunConfig.from_run_config({"queries-per-round": queries})
    data = ClientData(some(train, labels, "train"), some(train, labels, "validation"))
    return RoundExamples("0", data, some(public, labels, "public"), config, server_round)


def private(batch: list[Example]) -> set[Example]:
    return {example for example in batch if example.input.startswith("train")}


@pytest.mark.parametrize(
    ("queries", "size"), [(8, 8), (32, 8), (100, 25), (191, 47), (192, 48), (1000, 48)]
)
def test_a_search_judges_by_as_many_as_its_queries_are_good_for(queries: int, size: int) -> None:
    batch = examples(queries).batch
    assert len(set(batch)) == len(batch) == size
    assert batch == examples(queries).batch, "a message that comes again finds the same"
    others = {frozenset(examples(queries, server_round).batch) for server_round in ROUNDS}
    assert (len(others) == 1) == (size == 48), "other rounds, other examples"


@pytest.mark.parametrize(("labels", "train", "public"), [(2, 32, 16), (3, 12, 6), (5, 10, 5)])
def test_labels_and_parts_are_in_proportion(labels: int, train: int, public: int) -> None:
    for server_round in ROUNDS:
        made = examples(48, server_round, labels=labels, train=train, public=public)
        counts = Counter(example.label for example in made.batch).values()
        assert len(counts) == labels
        assert max(counts) - min(counts) <= 1
        assert abs(len(private(made.batch)) - len(made.batch) * 2 / 3) <= labels
        for number in range(1, train):
            scored = Counter(example.label for example in made.to_score(number)).values()
            assert max(scored) - (min(scored) if len(scored) == labels else 0) <= 1


def test_what_is_scored_are_the_searchs_examples_first() -> None:
    for server_round in ROUNDS:
        made = examples(100, server_round)
        searched = private(made.batch)
        assert set(made.to_score(len(searched))) == searched
        assert [example.input.split()[0] for example in made.to_score(None)] == (
            ["train"] * 32 + ["validation"] * 32
        )


@pytest.mark.parametrize(("train", "public"), [(32, 0), (0, 16), (3, 2), (0, 0)])
def test_few_examples_of_either_kind(train: int, public: int) -> None:
    made = examples(1000, train=train, public=public)
    assert len(made.batch) == train + public
    assert len(made.to_score(None)) == 2 * train
