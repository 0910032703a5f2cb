import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.data import DataError, Partition
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import (
    Instruction,
    InstructionData,
    parse_row,
    read_hub,
    read_jsonl,
    separate,
)
from feddtpt_flwr.fedpit.partition import divide, hold_out
from feddtpt_flwr.fedpit.tasks import load_instructions

SECRET = "the patient's own words"


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def config(**settings: str) -> FedPITConfig:
    return FedPITConfig.from_run_config(settings)


def rows(number: int, topics: int = 4) -> list[Instruction]:
    return [Instruction(f"Ask {i}.", f"Say {i}.", f"topic {i % topics}") for i in range(number)]


def test_rows_of_a_file(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"instruction": " Ask. ", "response": "Say.", "topic": "t"},
        {"instruction": "Ask.", "input": "This.", "output": "Say."},
        {"question": "Which?", "answer": "one ", "choices": ["one ", "two"], "other": 7},
        {"prompt": "Ask.", "response": "Say.", "category": None},
        {"instruction": " ", "question": "Ask.", "response": "", "answer": "Say.", "output": None},
    )
    assert read_jsonl(file) == (
        Instruction("Ask.", "Say.", "t"),
        Instruction("Ask.\n\nThis.", "Say."),
        Instruction("Which?", "one", "", ("one", "two")),
        Instruction("Ask.", "Say."),
        Instruction("Ask.", "Say."),
    )


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": SECRET}, "field 'response' is missing or empty"),
        ({"instruction": "", "response": SECRET}, "field 'instruction' is missing or empty"),
        ({"instruction": SECRET, "response": 7}, "field 'response' must be a text"),
        ({"instruction": SECRET + "\ud83d", "response": "b"}, "field 'instruction' holds half a"),
        ({"instruction": "a", "question": SECRET, "response": "b"}, "'instruction' and 'question'"),
        ([SECRET], "a JSON object is needed"),
        ({"instruction": "a", "response": SECRET, "choices": ["b"]}, "not among its choices"),
        ({"instruction": "a", "response": "b", "choices": SECRET}, "a list of texts"),
    ],
)
def test_a_faulty_row_is_named_and_not_shown(row: Any, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"instruction": "Ask.", "response": "Say."}, row)
    with pytest.raises(DataError, match=f"a.jsonl: line 2: .*{words}") as error:
        read_jsonl(file)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [(SECRET.encode(), "line 1 is no JSON"), (b"\n", "no row"), (b"\xff\xfe", "cannot be read")],
)
def test_a_file_that_is_no_jsonl(content: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_jsonl(file)
    assert SECRET not in str(error.value)
    with pytest.raises(DataError, match="there is no such file"):
        read_jsonl(tmp_path / "b.jsonl")


def test_no_instruction_is_twice_or_in_both_sets() -> None:
    data = separate([*rows(50), Instruction("Ask  3.", "Otherwise.")])
    asked = [row.instruction for row in (*data.train, *data.test)]
    assert sorted(asked) == sorted({row.instruction for row in rows(50)})
    assert 0 < len(data.test) < 25
    given = separate(rows(10), rows(3))
    assert (len(given.train), len(given.test)) == (7, 3)


def test_drug_reviews_are_short_complete_and_of_four_kinds(drugs: InstructionData) -> None:
    assert len(drugs.train) > 500
    assert len(drugs.test) > 300
    every = [*drugs.train, *drugs.test]
    for row in every:
        assert row.instruction.strip() == row.instruction != ""
        assert row.response
        assert row.topic
        assert "&#" not in row.text
        assert "<" not in row.topic
        assert len(row.text.split()) < 70
        assert not row.choices or row.response in row.choices
    kinds = Counter(row.instruction.split()[0] for row in every)
    assert set(kinds) == {"Was", "In", "Which", "Continue"}
    assert min(kinds.values()) > len(every) / 6


def test_tasks_by_name(drugs: InstructionData, embedded_assets: None, tmp_path: Path) -> None:
    assert load_instructions(config()) == drugs
    news = load_instructions(config(task="bbc_news")).train[0]
    assert news.response in news.choices
    assert news.topic == news.response
    file = write(tmp_path / "a.jsonl", *({"instruction": f"{i}?", "response": "x"} for i in "abc"))
    data = load_instructions(config(**{"task": str(file), "test-file": str(file)}))
    assert (len(data.train), len(data.test)) == (0, 3)
    with pytest.raises(DataError, match=r"unknown task 'drugs'; tasks: drug_reviews, .*\.jsonl"):
        load_instructions(config(task="drugs"))


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_clients_share_nothing(partition: Partition) -> None:
    parts = divide(
        rows(60),
        num_clients=5,
        examples_per_client=12,
        partition=partition,
        dirichlet_alpha=0.1,
        seed=3,
    )
    assert [len(part) for part in parts] == [12] * 5
    assert {row for part in parts for row in part} == set(rows(60))


def test_one_client_of_all_has_what_several_have_together() -> None:
    def parts(clients: int, each: int) -> set[Instruction]:
        divided = divide(
            rows(90),
            num_clients=clients,
            examples_per_client=each,
            partition="iid",
            dirichlet_alpha=1.0,
            seed=1,
        )
        return {row for part in divided for row in part}

    assert parts(1, 24) == parts(3, 8) == parts(4, 6)


def test_a_small_alpha_gives_clients_of_few_topics() -> None:
    def topics(alpha: float) -> float:
        parts = divide(
            rows(400, topics=8),
            num_clients=4,
            examples_per_client=16,
            partition="dirichlet",
            dirichlet_alpha=alpha,
            seed=0,
        )
        return sum(len({row.topic for row in part}) for part in parts) / len(parts)

    assert topics(0.02) < 3 < 6 < topics(100.0)


def test_too_few_instructions() -> None:
    def part(number: int, partition: Partition) -> None:
        divide(
            rows(number, topics=1),
            num_clients=3,
            examples_per_client=4,
            partition=partition,
            dirichlet_alpha=1.0,
            seed=0,
        )

    with pytest.raises(DataError, match="12 instructions are needed for 3 clients, 11 are"):
        part(11, "iid")
    with pytest.raises(DataError, match="two or more topics, there are 1"):
        part(12, "dirichlet")
    with pytest.raises(DataError, match="test-size = 9: only 8"):
        hold_out(rows(8), 9, seed=0)


def test_held_out_sample() -> None:
    assert hold_out(rows(8), 0, seed=0) == tuple(rows(8))
    with pytest.raises(DataError, match="name a file of them with test-file"):
        hold_out([], 0, seed=0)
    sample = hold_out(rows(40), 10, seed=0)
    assert sample == hold_out(rows(40), 10, seed=0) != hold_out(rows(40), 10, seed=1)
    assert len(set(sample)) == 10


def test_a_data_set_as_the_hub_has_them(tmp_path: Path) -> None:
    """A folder stands in for the hub's: the library loads both in the same way."""
    for split, numbers in (("train", range(6)), ("test", range(4, 8))):
        rows = ({"instruction": f"Ask {i}.", "output": f"Say {i}."} for i in numbers)
        write(tmp_path / f"{split}.jsonl", *rows)
    data = load_instructions(config(task=str(tmp_path)))
    assert [row.response for row in data.train] == [f"Say {i}." for i in range(4)]
    assert [row.response for row in data.test] == [f"Say {i}." for i in range(4, 8)]
    (tmp_path / "train.jsonl").write_text('{"text": "no instruction"}', encoding="utf-8")
    (tmp_path / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"split 'train', row 1: field 'instruction'"):
        read_hub(str(tmp_path))
    with pytest.raises(DataError, match=r"cannot load .*none.* from the Hugging Face hub"):
        read_hub(str(tmp_path / "none"))


def test_a_row_of_the_hub_names_its_place() -> None:
    with pytest.raises(DataError, match="row 7: field 'response'"):
        parse_row({"instruction": "Ask."}, "row 7")
