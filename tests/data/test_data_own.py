import json
from pathlib import Path

import pandas as pd
import pytest

from feddtpt_flwr.data import DataError, Task
from feddtpt_flwr.data.cleaning import loose_key, prepare
from feddtpt_flwr.data.own import OwnFile, count_by_class, split_own

TASK = Task(
    name="reviews",
    template="{prompt} {text}",
    label_column="label",
    labels=(0, 1),
    answers=("negative", "positive"),
    seed_prompt="Judge.",
)
ROWS = [{"text": f"secretword{i} of the file", "label": i % 2} for i in range(20)]


def write(folder: Path, suffix: str = ".csv", rows: list[dict[str, object]] | None = None) -> Path:
    path = folder / f"own{suffix}"
    frame = pd.DataFrame(ROWS if rows is None else rows)
    match suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        case ".parquet":
            frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_file_is_read(suffix: str, tmp_path: Path) -> None:
    examples = OwnFile(write(tmp_path, suffix)).read(TASK)
    assert len(examples) == 20
    assert count_by_class(examples, TASK) == {"negative": 10, "positive": 10}
    assert examples[3].input == " secretword3 of the file"
    assert examples[3].label == 1


def test_columns_and_labels_may_have_other_names(tmp_path: Path) -> None:
    rows = [
        {"id": 7, "Review": "a", "stars": "5 stars"},
        {"id": 8, "Review": "b", "stars": "1 star"},
        {"id": 9, "Review": "c", "stars": "2 stars"},
    ]
    file = OwnFile(
        write(tmp_path, rows=rows),
        columns={"Review": "text", "stars": "label"},
        labels={"5 stars": "1", "1 star": "0", "2 stars": "0"},
    )
    assert [(e.input, e.label) for e in file.read(TASK)] == [(" a", 1), (" b", 0), (" c", 0)]


def test_a_repeated_text_counts_once(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"text": "same", "label": i % 2} for i in range(6)]
    assert [e.label for e in OwnFile(write(tmp_path, rows=rows)).read(TASK)] == [0]


def test_the_split_has_k_of_each_class_and_hangs_on_the_seed(tmp_path: Path) -> None:
    file = OwnFile(write(tmp_path))
    data = split_own(file, TASK, k_shot=4, seed=0)
    for part in (data.train, data.validation):
        assert count_by_class(part, TASK) == {"negative": 4, "positive": 4}
    assert not {e.input for e in data.train} & {e.input for e in data.validation}
    assert split_own(file, TASK, k_shot=4, seed=0) == data
    assert split_own(file, TASK, k_shot=4, seed=1) != data


def test_what_others_hold_too_is_left_out(tmp_path: Path) -> None:
    file = OwnFile(write(tmp_path))
    shared = [e.input for e in file.read(TASK)[:4]]
    data = split_own(file, TASK, k_shot=4, seed=0, shared=shared)
    assert not {e.input for e in (*data.train, *data.validation)} & set(shared)
    with pytest.raises(DataError, match="too few are there of 'negative', 'positive'"):
        split_own(file, TASK, k_shot=5, seed=0, shared=shared)


def test_too_few_of_a_class_are_named_with_all_counts(tmp_path: Path) -> None:
    path = write(tmp_path, rows=ROWS[:10] + ROWS[1::2])
    with pytest.raises(DataError) as caught:
        split_own(OwnFile(path), TASK, k_shot=4, seed=0)
    message = str(caught.value)
    assert str(path) in message
    assert "8 examples of each class are needed (k-shot = 4" in message
    assert "too few are there of 'negative'; there are: 'negative' 5, 'positive' 10" in message


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ".parquet")

    def fail(*_: object) -> None:
        raise ImportError("as pandas does without pyarrow")

    monkeypatch.setattr(pd, "read_parquet", fail)
    with pytest.raises(DataError, match="needs pyarrow, which is not installed here"):
        OwnFile(path).read(TASK)


@pytest.mark.parametrize(
    ("columns", "labels", "words"),
    [
        ({"body": "txt"}, {}, "data-columns: 'body=txt': task 'reviews' has no 'txt'"),
        ({}, {"bad": "2"}, "data-labels: 'bad=2': task 'reviews' has no '2'; allowed"),
    ],
)
def test_a_mapping_to_what_the_task_lacks(
    columns: dict[str, str], labels: dict[str, str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=words):
        OwnFile(write(tmp_path), columns, labels).read(TASK)


def test_a_mapped_column_must_be_there(tmp_path: Path) -> None:
    file = OwnFile(write(tmp_path), {"text": "text", "Text": "text"})
    with pytest.raises(DataError, match=r"data-columns: 'Text=text': .* has no column 'Text'"):
        file.read(TASK)


def faulty(folder: Path, kind: str) -> OwnFile:
    """A file that holds "secretword" in every cell of text, wrong in one way."""
    path = write(folder)
    match kind:
        case "no header":
            path.write_text(path.read_text().partition("\n")[2])
        case "label column with text":
            return OwnFile(path, columns={"text": "label", "label": "text"})
        case "ragged":
            path.write_text(path.read_text() + "secretword,1,secretword,secretword\n")
        case "empty cell":
            write(folder, rows=[*ROWS, {"text": "", "label": 1}])
        case "latin-1":
            path.write_bytes("text,label\nsecretword é,1\n".encode("latin-1"))
        case "no json":
            path = folder / "own.jsonl"
            path.write_text(json.dumps(ROWS[0]) + "\nsecretword\n")
        case "no parquet":
            path = folder / "own.parquet"
            path.write_text("secretword")
        case "mapped onto another":
            path.write_text("text,team,label\nsecretword,secretword,1\n")
            return OwnFile(path, columns={"team": "label"})
        case "twice":
            path.write_text("text,text,label\nsecretword,secretword,1\n")
        case "other labels":
            write(folder, rows=[{"text": "secretword", "label": "secretword"}])
        case "list as a label":
            path = folder / "own.jsonl"
            row = {"text": "secretword", "label": ["secretword"]}
            path.write_text("\n".join(map(json.dumps, [ROWS[0], row])))
        case "array as a label":
            path = write(folder, ".parquet", [{"text": "secretword", "label": ["secretword", "b"]}])
        case "no time as a label":
            path = folder / "own.parquet"
            pd.DataFrame({"text": ["secretword"], "label": [pd.NaT]}).to_parquet(path)
        case "no number as a label":
            path = folder / "own.parquet"
            labels = pd.array([1, None], dtype="Int64")
            pd.DataFrame({"text": ["secretword", "b"], "label": labels}).to_parquet(path)
        case "list as a text":
            path = folder / "own.jsonl"
            path.write_text(json.dumps({"text": ["secretword"], "label": 1}))
        case "semicolons":
            path.write_text("secretword;text;label\nsecretword;secretword;1\n")
        case "stray quote":
            path.write_text('text,label\n"secretword,1\nsecretword "secretword",1\n')
        case "utf-16":
            path.write_text("text,label\nsecretword,1\n", encoding="utf-16")
        case "array":
            path = folder / "own.jsonl"
            path.write_text(json.dumps([{"text": "secretword", "label": 1}]))
        case "ragged tsv":
            path = folder / "own.tsv"
            path.write_text("text\tlabel\nsecretword\t1\tsecretword\n")
        case "folder":
            path = folder
        case "nothing":
            path.write_text("")
        case "missing":
            path = folder / "none.csv"
        case "suffix":
            path = folder / "own.xlsx"
    return OwnFile(path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no header", "none of its 2 columns is called 'text'"),
        ("label column with text", "20 of 20 rows hold 20 labels"),
        ("ragged", "cannot be read"),
        ("empty cell", "row 21 .* is empty in column 'text'"),
        ("latin-1", "cannot be read"),
        ("no json", "cannot be read"),
        ("no parquet", "cannot be read"),
        ("twice", "more than one column 'text'"),
        ("mapped onto another", "more than one column 'label'"),
        ("other labels", "1 of 1 rows hold 1 labels .* declared: .*'0', '1'"),
        ("list as a label", "row 2 .* of type 'list' in column 'label'"),
        ("array as a label", "row 1 .* of type 'ndarray' in column 'label'"),
        ("no time as a label", "row 1 .* is empty in column 'label'"),
        ("no number as a label", "row 2 .* is empty in column 'label'"),
        ("list as a text", "row 1 .* of type 'list' in column 'text'"),
        ("semicolons", "line 1 has semicolons and no comma"),
        ("stray quote", "line 2 has a stray quote"),
        ("utf-16", "it is UTF-16"),
        ("array", "line 1: every line must be a JSON object"),
        ("ragged tsv", "line 2, saw 3; needed is UTF-8 with tabs"),
        ("folder", "is a folder; a file is needed"),
        ("nothing", "cannot be read"),
        ("missing", "there is no such file"),
        ("suffix", "unknown suffix '.xlsx'"),
    ],
)
def test_a_faulty_file_is_named_and_its_content_is_not(
    kind: str, words: str, tmp_path: Path
) -> None:
    """Flower sends a client's exception to the server."""
    file = faulty(tmp_path, kind)
    with pytest.raises(DataError, match=words) as caught:
        file.read(TASK)
    assert str(file.path) in str(caught.value)
    assert "secretword" not in str(caught.value)


def test_texts_that_differ_in_white_space_alone_are_one(tmp_path: Path) -> None:
    rows = [*ROWS, {"text": f"{ROWS[0]['text']}  ", "label": ROWS[0]["label"]}]
    file = OwnFile(write(tmp_path, rows=rows))
    assert len(file.read(TASK)) == len(ROWS)
    spaced = [example.input.replace(" ", "  ") for example in file.read(TASK)[:2]]
    data = split_own(file, TASK, k_shot=4, seed=0, shared=spaced)
    drawn = {" ".join(e.input.split()) for e in (*data.train, *data.validation)}
    assert not drawn & {" ".join(text.split()) for text in spaced}


def test_half_a_character_is_replaced() -> None:
    """As JSON's escapes can make one, where pandas reads without pyarrow."""
    frame = pd.DataFrame({"text": ["half \ud83d"], "label": [1]}, dtype=object)
    assert prepare(frame, TASK, "file")["text"].tolist() == ["half ?"]


def test_texts_that_differ_in_case_or_form_are_one(tmp_path: Path, warned: list[str]) -> None:
    rows: list[dict[str, object]] = [{**row, "text": str(row["text"]).upper()} for row in ROWS[:3]]
    rows[2]["label"] = 1 - int(str(rows[2]["label"]))
    file = OwnFile(write(tmp_path, rows=[*ROWS, *rows]))
    assert file.read(TASK) == OwnFile(write(tmp_path)).read(TASK)
    shared = [e.input.title() for e in file.read(TASK)[:2]]
    write(tmp_path, rows=[*ROWS, *rows])
    data = split_own(file, TASK, k_shot=4, seed=0, shared=shared)
    drawn = {loose_key(e.input) for e in (*data.train, *data.validation)}
    assert not drawn & set(map(loose_key, shared))
    assert warned == [
        f"{file.path}: 3 rows that repeat another's text are left out, 1 of them with another label"
    ]
