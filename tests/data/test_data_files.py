import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from feddtpt_flwr.data import (
    Cleaning,
    DataError,
    FileSource,
    Task,
    get_task,
    glue_files,
    to_examples,
)
from feddtpt_flwr.data.cleaning import loose_key, prepare

TASK = Task(
    name="reviews",
    template="{prompt} {text}",
    label_column="label",
    labels=("bad", "good"),
    answers=("negative", "positive"),
    seed_prompt="Judge.",
)

TRAIN = pd.DataFrame(
    {
        "id": [1, 2, 3, 4],
        "text": ['a "fine" film', "None", "dull, very dull", "007"],
        "label": ["good", "bad", "bad", "good"],
    }
)
TEST = pd.DataFrame({"id": [5, 6], "text": ["so-so", "élan"], "label": ["bad", "good"]})

WRITERS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t", quoting=3),
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path),
}


def write(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    path = folder / name
    WRITERS[path.suffix](frame, path)
    return path


def write_text(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_round_trips(tmp_path: Path, suffix: str) -> None:
    train = write(tmp_path, f"train{suffix}", TRAIN)
    test = write(tmp_path, f"test{suffix}", TEST)
    tables = FileSource(train, test).load(TASK)
    for table, written in ((tables.train, TRAIN), (tables.test, TEST)):
        assert list(table.columns) == ["text", "label"]
        assert table["text"].tolist() == written["text"].tolist()
        assert table["label"].tolist() == written["label"].tolist()


@pytest.mark.parametrize("suffix", WRITERS)
def test_integer_labels_agree_in_every_format(tmp_path: Path, suffix: str) -> None:
    task = dataclasses.replace(TASK, labels=(0, 1))
    frame = pd.DataFrame({"text": ["a", "b"], "label": [1, 0]})
    train = write(tmp_path, f"train{suffix}", frame)
    test = write(tmp_path, f"test{suffix}", frame.assign(text=["c", "d"]))
    examples = to_examples(task, FileSource(train, test).load(task).train)
    assert [(example.input, example.label) for example in examples] == [(" a", 1), (" b", 0)]


def test_one_file_is_split_and_stays_split_when_it_grows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"text {i}" for i in range(500)], "label": ["bad"] * 500})
    half = FileSource(write(tmp_path, "half.csv", frame[:250])).load(TASK)
    whole = FileSource(write(tmp_path, "whole.csv", frame[::-1])).load(TASK)
    assert 70 <= len(whole.test) <= 130
    assert set(half.test["text"]) <= set(whole.test["text"])
    assert set(half.train["text"]) <= set(whole.train["text"])
    assert not set(whole.train["text"]) & set(whole.test["text"])


def test_repeated_texts_are_dropped(tmp_path: Path) -> None:
    train = write_text(
        tmp_path, "train.tsv", "text\tlabel", "a  b\tbad", "a b \tgood", "c\tbad", "d\tgood"
    )
    test = write_text(tmp_path, "test.tsv", "text\tlabel", "c \tbad", "e\tgood", " e\tbad")
    tables = FileSource(train, test).load(TASK)
    assert tables.train.to_numpy().tolist() == [["a  b", "bad"], ["d", "good"]]
    assert tables.test.to_numpy().tolist() == [["c ", "bad"], ["e", "good"]]


def test_repetition_needs_all_text_columns(tmp_path: Path) -> None:
    task = dataclasses.replace(TASK, template="{prompt} {one} {two}")
    train = write_text(
        tmp_path, "train.csv", "one,two,label", "a,b,bad", "a,c,bad", "a b,c,bad", "a,b,good"
    )
    test = write_text(tmp_path, "test.csv", "one,two,label", "a,b c,bad")
    assert len(FileSource(train, test).load(task).train) == 3


def test_columns_and_labels_can_be_renamed(tmp_path: Path) -> None:
    train = write_text(tmp_path, "train.csv", "0,first,x", "1,second,y")
    test = write_text(tmp_path, "test.csv", "1,third,z")
    source = FileSource(
        train,
        test,
        columns=("mark", "text", "rest"),
        rename={"mark": "label"},
        label_map={"0": "bad", "1": "good"},
    )
    assert source.load(TASK).train.to_numpy().tolist() == [["first", "bad"], ["second", "good"]]


def test_cleaning_truncates_strips_and_drops(tmp_path: Path) -> None:
    train = write_text(
        tmp_path, "train.csv", "text,label", "one<br />two<BR>three four,bad", ",good", "five,"
    )
    test = write_text(tmp_path, "test.csv", "text,label", "six,bad")
    cleaning = Cleaning(max_words=3, strip_breaks=True, drop_incomplete=True)
    tables = FileSource(train, test, cleaning=cleaning).load(TASK)
    assert tables.train.to_numpy().tolist() == [["one two three", "bad"]]


def test_negative_max_words_is_refused() -> None:
    with pytest.raises(DataError, match="max_words is -1: 0 or more is needed"):
        Cleaning(max_words=-1)


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.csv", ["text,stars", "x,bad"], "column 'label' is missing; columns there: 'text'"),
        ("a.csv", ["text,label"], "there is no row"),
        ("a.csv", ["text,label", "x,meh", "y,?"], r"not declare: \['\?', 'meh'\]; declared: "),
        ("a.csv", ["text,label", "x,bad", '" ",bad'], r"row 2 .* is empty in column 'text'"),
        ("a.jsonl", ['{"text": null, "label": "bad"}'], r"row 1 .* is empty in column 'text'"),
        ("a.jsonl", ['{"a":' * 100_000], "line 1: nested too deeply"),
        ("a.jsonl", ["["], "line 1: every line must be a JSON object, and this file begins with"),
        ("a.jsonl", ["{}", "[1]"], "line 2: every line must be a JSON object$"),
        ("a.jsonl", [], "there is no row"),
        ("a.csv", ["text;label", "a;bad"], "line 1 has semicolons and no comma; needed is UTF-8"),
        ("a.csv", ["text,label", '"a, b",bad', '"a,bad', "b,good"], "line 3 has a stray quote"),
        ("a.csv", ["text,label", "a,bad", '"a,bad', 'so "b",good', "c,bad"], "line 3 has a stray"),
        ("a.csv", ["text,label", '"a""', 'b",bad', '"c" d,bad'], "line 4 has a stray quote"),
        ("a.csv", ["", " ", "text,label", "a,bad,"], "line 4 has 3 fields, and the first line 2"),
        ("a.tsv", ["text\tlabel", "a\tbad\tc"], "line 2, saw 3; needed is UTF-8 with tabs"),
        ("a.jsonl", ["{}", "", "{"], r"cannot be read as .jsonl: line 3, column 1: "),
        ("a.parquet", ["x"], "cannot be read as .parquet"),
        ("a.jsonl", ["[1]"], "every line must be a JSON object"),
        ("a.csv", [], "cannot be read as .csv"),
        ("a.csv", ["text,label", "a,bad,c"], "cannot be read as .csv: line 2 has 3 fields"),
        ("a.csv", ["text,label", "a,bad", "b"], "row 2 .* is empty in column 'label'"),
        ("a.csv", ["text,text,label", "a,b,bad"], "more than one column 'text'"),
        ("a.xlsx", ["x"], "unknown suffix '.xlsx'; known suffixes: .csv, .tsv, .jsonl, .parquet"),
    ],
)
def test_unusable_file_is_refused(
    tmp_path: Path, name: str, lines: list[str], message: str
) -> None:
    path = write_text(tmp_path, name, *lines)
    with pytest.raises(DataError, match=message) as caught:
        FileSource(path).load(TASK)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv: there is no such file"):
        FileSource(tmp_path / "absent.csv").load(TASK)


@pytest.mark.parametrize("name", ["folder", "folder.csv"])
def test_a_folder_is_no_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=f"{name} is a folder; a file is needed"):
        FileSource(tmp_path / name).load(TASK)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-16", "it is UTF-16, and UTF-8 is needed: convert it, as with 'iconv -f UTF-16"),
        ("latin-1", "line 3 is not UTF-8, which is needed: .* 'iconv -f WINDOWS-1252"),
    ],
)
def test_what_another_encoding_is_converted_to(
    tmp_path: Path, suffix: str, encoding: str, words: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes('{"text": "a"}\n\n{"text": "\u00e9lan"}\n'.encode(encoding))
    with pytest.raises(DataError, match=words):
        FileSource(path).load(TASK)


def test_quoted_fields_and_long_texts_are_read(tmp_path: Path) -> None:
    texts = ['a ""b""', "one,\n two", "x" * 200_000, ' so "c"', "", "d;e"]
    rows = [f'"{texts[0]}",bad', f'"{texts[1]}",bad', *(f"{text},bad" for text in texts[2:4])]
    path = write_text(tmp_path, "a.csv", "text,label", *rows, "", " ", 'd;e,"bad"')
    source = FileSource(path, write(tmp_path, "test.csv", TEST))
    expected = ['a "b"', *texts[1:4], "d;e"]
    assert source.load(TASK).train["text"].tolist() == expected


def test_wrong_number_of_column_names_is_refused(tmp_path: Path) -> None:
    path = write_text(tmp_path, "a.tsv", "x\tbad\t1")
    with pytest.raises(DataError, match=r"2 column names were given \(text, label\).* 3 columns"):
        FileSource(path, columns=("text", "label")).load(TASK)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_column_names_are_for_headerless_files(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, f"a{suffix}", TRAIN)
    with pytest.raises(DataError, match="files name their own; use rename"):
        FileSource(path, columns=("text", "label")).load(TASK)


def test_train_inside_test_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", TRAIN)
    with pytest.raises(DataError, match="every text of train is in test as well"):
        FileSource(path, path).load(TASK)


GLUE_FILES = {
    "rte": (
        ["index\tsentence1\tsentence2\tlabel"],
        ['{i}\tHe said "stop.\tHe spoke {i}.\tentailment', "{i}\tOne {i}.\tTwo.\tnot_entailment"],
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel"],
        ["{i}\tWho {i}?\tAnn did.\tentailment", '{i}\tWhy {i}?\tThe "end.\tnot_entailment'],
    ),
    "wnli": (
        ["index\tsentence1\tsentence2\tlabel"],
        ["{i}\tIt fell {i}.\tThe cup fell.\t0", "{i}\tIt rose {i}.\tThe sun rose.\t1"],
    ),
    "cola": ([], ["ab01\t0\t*\tSlept cat {i}.", 'ab01\t1\t\tThe "cat" slept {i}.']),
    "sst2": (["sentence\tlabel"], ["a bore {i} \t0", "a joy {i} \t1"]),
    "mrpc": (
        ["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"],
        ["0\t7\t8\tRain {i}.\tSnow.", '1\t7\t8\t"Rain {i}.\tIt rained.'],
    ),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"],
        ["1\t2\t3\tHow {i}?\tWhy?\t0", "1\t2\t3\tWho {i}?\tWho?\t1", "1\t2\t3\t\tNone {i}?\t0"],
    ),
}


@pytest.mark.parametrize("name", GLUE_FILES)
def test_glue_files_fit_the_hub_task(tmp_path: Path, name: str) -> None:
    task = get_task(name)
    header, rows = GLUE_FILES[name]
    for file, numbers in (("train.tsv", range(3)), ("dev.tsv", range(3, 5))):
        write_text(tmp_path, file, *header, *(row.format(i=i) for i in numbers for row in rows))
    tables = glue_files(name, tmp_path).load(task)
    # Of QQP's three rows a number, the one with an empty question is dropped.
    assert (len(tables.train), len(tables.test)) == (6, 4)
    labels = [example.label for example in to_examples(task, tables.test)]
    assert labels == [0, 1, 0, 1]
    assert tables.train.map(lambda value: isinstance(value, (str, int))).all(axis=None)


def test_quote_marks_in_tsv_are_plain_text(tmp_path: Path) -> None:
    header, rows = GLUE_FILES["rte"]
    write_text(tmp_path, "dev.tsv", *header, *(row.format(i=i) for i in range(40) for row in rows))
    tables = glue_files("rte", tmp_path, train_file="dev.tsv", test_file=None).load(get_task("rte"))
    assert len(tables.train) + len(tables.test) == 80
    assert 'He said "stop.' in set(tables.train["sentence1"])


def test_only_glue_tasks_have_glue_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'imdb' is not a GLUE task; there are: sst2, rte"):
        glue_files("imdb", tmp_path)


def test_jsonl_keeps_texts_that_look_like_numbers_or_dates(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "bad"} for text in ("007", "2020-01-01")]
    path = write_text(tmp_path, "train.jsonl", *map(json.dumps, rows))
    test = write(tmp_path, "test.jsonl", TEST)
    assert FileSource(path, test).load(TASK).train["text"].tolist() == ["007", "2020-01-01"]


def test_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    train = write_text(tmp_path, "train.csv", "\ufefftext,label", "a,bad")
    test = write(tmp_path, "test.csv", TEST)
    assert FileSource(train, test).load(TASK).train["text"].tolist() == ["a"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("value", [["dull", "slow"], {"dull": 1}])
@pytest.mark.parametrize("column", ["text", "label"])
def test_cells_that_are_no_single_value_are_refused(
    tmp_path: Path, suffix: str, value: object, column: str
) -> None:
    rows: dict[str, list[object]] = {"text": ["a", "b"], "label": ["bad", "good"]}
    rows[column] = [None, value]
    path = write(tmp_path, f"a{suffix}", pd.DataFrame(rows))
    with pytest.raises(DataError, match=rf"row 2 .* of type '\w+' in column '{column}'") as caught:
        FileSource(path).load(TASK)
    assert "dull" not in str(caught.value)


def test_bytes_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "a.parquet", pd.DataFrame({"text": [b"dull"], "label": ["bad"]}))
    with pytest.raises(DataError, match=r"row 1 .* of type 'bytes' in column 'text'"):
        FileSource(path).load(TASK)


def test_single_values_of_every_kind_are_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["a", 7, 0.5, True], "label": ["bad"] * 4}, dtype=object)
    assert prepare(frame, TASK, "here")["text"].tolist() == ["a", "7", "0.5", "True"]


@pytest.mark.parametrize("column", ["text", "label"])
@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT, ""])
def test_what_is_missing(column: str, missing: object) -> None:
    cells = {"text": ["a", "b"], "label": ["bad", "good"], column: ["bad", missing]}
    rows = pd.DataFrame(cells, dtype=object)
    with pytest.raises(DataError, match=f"row 2 .* is empty in column '{column}'"):
        prepare(rows, TASK, "here")
    assert len(prepare(rows, TASK, "here", Cleaning(drop_incomplete=True))) == 1


def test_of_strange_labels_a_few_are_shown(tmp_path: Path) -> None:
    lines = [f"{i},{i:02} {'x' * 100}" for i in (*range(30), 0)]
    path = write_text(tmp_path, "a.csv", "text,label", "fine,good", *lines)
    with pytest.raises(DataError) as caught:
        FileSource(path).load(TASK)
    message = str(caught.value)
    assert "31 of 32 rows hold 30 labels in column 'label'" in message
    assert f"'00 {'x' * 37}', '01" in message
    assert "'04" in message
    assert "] and 25 more; declared: ['bad', 'good']" in message
    assert "'05" not in message


def test_texts_that_differ_in_case_or_form_are_not_on_both_sides(tmp_path: Path) -> None:
    texts = [f"fine film {i}" for i in range(60)]
    others = [text.title() for text in texts] + [text.replace("fi", "\ufb01") for text in texts]
    frame = pd.DataFrame({"text": [*texts, *others], "label": ["bad"] * 180})
    path = write(tmp_path, "a.csv", frame)
    tables = FileSource(path).load(TASK)
    train, test = ([loose_key(text) for text in t["text"]] for t in (tables.train, tables.test))
    assert sorted([*train, *test]) == sorted(texts)
    exactly = FileSource(path, ignore_case=False).load(TASK)
    assert len(exactly.train) + len(exactly.test) == 180
    assert set(tables.test["text"]) < set(exactly.test["text"]), "the same rows are held out"
    assert {loose_key(text) for text in exactly.test["text"]} == set(test)


def test_a_text_in_other_case_is_kept_out_of_train(tmp_path: Path) -> None:
    train = write_text(tmp_path, "train.csv", "text,label", "So-So,bad", "Fine,good", "FINE,good")
    test = write(tmp_path, "test.csv", TEST)
    tables = FileSource(train, test).load(TASK)
    assert tables.train["text"].tolist() == ["Fine"]
    assert tables.test["text"].tolist() == TEST["text"].tolist()


def test_glue_files_keep_texts_in_other_case(tmp_path: Path) -> None:
    write_text(tmp_path, "train.tsv", "sentence\tlabel", "Fine\t1", "fine\t1", "so\t0")
    write_text(tmp_path, "dev.tsv", "sentence\tlabel", "So\t0")
    tables = glue_files("sst2", tmp_path).load(get_task("sst2"))
    assert tables.train["sentence"].tolist() == ["Fine", "fine", "so"]


def test_repeated_rows_are_told(tmp_path: Path, warned: list[str]) -> None:
    lines = ["a b,bad", "A  b,bad", "a b,good", "a  b,bad", "c,good", "so-so,good"]
    train = write_text(tmp_path, "train.csv", "text,label", *lines)
    test = write(tmp_path, "test.csv", TEST)
    FileSource(train, test).load(TASK)
    assert warned == [
        f"{train} and {test}: 4 rows that repeat another's text are left out, 2 of them with "
        "another label"
    ]


def test_without_repeated_rows_nothing_is_told(tmp_path: Path, warned: list[str]) -> None:
    FileSource(write(tmp_path, "a.csv", TRAIN)).load(TASK)
    assert warned == []
