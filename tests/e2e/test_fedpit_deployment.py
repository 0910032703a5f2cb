"""FedPIT on a SuperLink and two SuperNodes, each with a file of instructions of its own."""

import json
from pathlib import Path

import pytest

from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.bundle import write_app
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.tasks import drug_reviews
from simulations.local_deployment import deployment

REPOSITORY = Path(__file__).parents[2]
EXAMPLES, TEST_SIZE = 3, 4
SETTINGS = {
    "clients": "own-data",
    "task": "public.jsonl",
    "test-file": "held-out.jsonl",
    "num-server-rounds": 1,
    "examples-per-client": EXAMPLES,
    "test-size": TEST_SIZE,
    "lora-rank": 4,
    "num-candidates": 2,
    "num-selected": 1,
    "num-demonstrations": 2,
    "max-instruction-tokens": 24,
    "max-response-tokens": 6,
    "batch-size": 2,
}

pytestmark = pytest.mark.slow


def write(file: Path, rows: tuple[Instruction, ...]) -> None:
    lines = [json.dumps({"instruction": r.instruction, "response": r.response}) for r in rows]
    file.write_text("\n".join(lines), encoding="utf-8")


def test_nodes_with_data_of_their_own_train_one_adapter(
    embedded_assets: None, tmp_path: Path
) -> None:
    rows = [row for row in drug_reviews().train if row.choices]
    app, runs = tmp_path / "fedpit", tmp_path / "runs"
    write_app(REPOSITORY, "fedpit", app)
    write(app / "public.jsonl", tuple(rows[:8]))
    write(app / "held-out.jsonl", tuple(rows[8 : 8 + TEST_SIZE]))
    names = ("north", "south")
    private = {name: tuple(rows[20 + 10 * i :][: EXAMPLES + 1]) for i, name in enumerate(names)}
    # Nodes of one machine would each unpack the model into a cache of their own.
    cache = {"FEDDTPT_CACHE": str(cache_folder())}
    with deployment(tmp_path / "deployment", cache) as running:
        for name, own in private.items():
            write(tmp_path / f"{name}.jsonl", own)
            running.start_node(name, **{"data-path": str(tmp_path / f"{name}.jsonl")})
        run_id = running.run(app, {**SETTINGS, "run-folder": str(runs)})
        assert running.wait(run_id) == "finished:completed", running.logs(run_id)
        said = running.run_log(run_id) + "".join(
            running.log_file(name).read_text(encoding="utf-8") for name in (*names, "superlink")
        )
    (folder,) = runs.iterdir()
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    trained = [line for line in map(json.loads, lines) if line["event"] == "train"]
    assert {line["client"] for line in trained} == set(names)
    assert {line["num-examples"] for line in trained} == {EXAMPLES}
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["failures"] == result["rejected"] == 0
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    # What the SuperLink's database kept of messages and runs counts as sent.
    kept = b"".join(path.read_bytes() for path in (tmp_path / "deployment").rglob("*.db*"))
    written = said + "".join(lines) + json.dumps(result) + kept.decode("latin-1")
    assert not [row for own in private.values() for row in own if row.instruction in written]
