import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from feddtpt_flwr import cli
from feddtpt_flwr.check import Finding, Speed, check_node, describe_run, fixes, most_queries
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Task
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.usage import Usage
from simulations.llama_server import llama_server
from tests.fill_mask_server import FillMaskService

SMALL: dict[str, Any] = {"k-shot": 2, "public-per-class": 1, "test-size": 4, "dtype": "float32"}


def check(*arguments: str | Path, **variables: str) -> Result:
    command = ["check", *map(str, arguments)]
    return CliRunner().invoke(cli.app, command, env={"COLUMNS": "200", **variables})


def said(result: Result) -> str:
    return re.sub(r"[\s│┌┐└┘─┬┴]+", " ", result.output)


@pytest.fixture
def own_file(tmp_path: Path) -> Path:
    path = tmp_path / "own.csv"
    rows = [f"a secretword{i} film,{i % 2}" for i in range(20)]
    path.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    return path


def test_most_queries_of_a_run(task: Task) -> None:
    config = RunConfig.from_run_config(
        {"num-server-rounds": 3, "queries-per-round": 100, "k-shot": 4, "race-candidates": 2}
    )
    assert most_queries(config, task) == 3 * (100 + 3 * 16)
    fewer = config.model_copy(update={"race_examples": 10})
    assert most_queries(fewer, task) == 3 * (100 + 3 * 10)
    for every in ({"race_examples": 0}, {"race_examples": 10, "privacy": "exponential"}):
        assert most_queries(config.model_copy(update=every), task) == most_queries(config, task)
    without = config.model_copy(update={"guard": False})
    assert most_queries(without, task) == 3 * 100, "nobody compares"


def test_a_run_is_described_with_tokens_time_and_money(task: Task) -> None:
    settings: dict[str, Any] = {
        "num-server-rounds": 1,
        "queries-per-round": 1000,
        "k-shot": 10,
        "guard": False,
    }
    settings |= {"price-per-million-input": 10.0, "price-per-million-output": 100.0}
    config = RunConfig.from_run_config(settings)
    used = Usage(requests=16, prompt_tokens=1600, completion_tokens=32)
    text = describe_run(config, task, Speed(0.06, 0.5, used, 16))
    assert "at most 1,000 questions in 1 rounds" in text
    assert "about 2 min" in text
    assert "about 100,000 tokens read and 2,000 written" in text
    assert "about 1.20 at the prices set" in text
    local = describe_run(config, task, Speed(0.06, 0.5, Usage(), 16))
    assert "tokens" not in local


def test_a_fix_is_named_once() -> None:
    found = [Finding("a", "fine"), Finding("b", "", "x"), Finding("c", "", "x")]
    assert fixes(found) == ["b, c: x"]


def test_what_a_run_may_take_of_a_nodes_epsilon_is_told(own_file: Path) -> None:
    pytest.importorskip("opendp")
    run = {**SMALL, "clients": "own-data", "privacy": "exponential", "public-per-class": 0}
    run |= {"epsilon": 0.5, "num-server-rounds": 3, "k-shot": 4}

    def found(limit: float) -> list[Finding]:
        node = {"data-path": str(own_file), "epsilon-limit": limit}
        # What comes after it loads models.
        first = list(islice(check_node(run, node, 4), 5))
        return [finding for finding in first if finding.subject == "epsilon"]

    file = f"{own_file}.epsilon.jsonl"
    assert [f.result for f in found(0.0)] == [f"{file}: 0 spent; this run takes up to 1.5"]
    [enough] = found(1.5)
    assert (enough.result, enough.fix) == (f"{file}: 0 of 1.5 spent; this run takes up to 1.5", "")
    _, short = found(1.4)
    assert short.fix.startswith("epsilon-limit = 1.4: less than the 1.5 of this run")
    Path(file).write_text("nonsense", encoding="utf-8")
    [broken] = found(1.5)
    assert "line 1 is no booking" in broken.fix


def test_repeated_rows_of_a_nodes_file_are_told(own_file: Path) -> None:
    with own_file.open("a", encoding="utf-8") as file:
        file.write("\nA SECRETWORD0 film,1\n")
    run = {**SMALL, "clients": "own-data", "public-per-class": 0}
    _, own = islice(check_node(run, {"data-path": str(own_file)}, 4), 2)
    assert own.result == (
        f"{own_file}: 20 different texts: 10 'negative', 10 'positive'; 1 rows that repeat "
        "another's text are left out, 1 of them with another label"
    )


def test_a_simulated_run_is_checked_with_all_its_clients(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    rows = [f"film {i},{i % 2}" for i in range(120)]
    train.write_text("\n".join(["text,label", *rows]), encoding="utf-8")
    run = {**SMALL, "k-shot": 5, "data-source": "files", "train-file": str(train)}

    def examples(num_clients: int, **node: int) -> Finding:
        config = {key.replace("_", "-"): value for key, value in node.items()}
        _, finding = islice(check_node(run, config, num_clients), 2)
        return finding

    assert examples(4).result.startswith("10 to search on, 10 to validate on")
    assert "are needed for 5 clients" in examples(5).fix
    assert examples(5, partition_id=1, num_partitions=2).result
    run["min-available-clients"] = 5
    assert "are needed for 5 clients" in examples(4).fix


def test_a_bad_setting_ends_the_check() -> None:
    findings = list(check_node({"k-shot": 0}, {}, 4))
    assert [f.subject for f in findings] == ["settings"]
    assert "k-shot = 0" in findings[0].fix


@pytest.mark.slow
def test_a_node_with_embedded_models_is_ready(
    language_model: LocalLanguageModel, own_file: Path
) -> None:
    result = check(
        "-c", "k-shot=2 public-per-class=1 test-size=4 dtype='float32' clients='own-data'",
        "-n", f"data-path='{own_file}'",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = said(result)
    assert "10 'negative', 10 'positive'" in text
    assert "4 to search on, 4 to validate on, 2 in the public set" in text
    assert "answers a second" in text
    assert "18 questions were asked" in text
    assert f"at most {3 * (250 + 5 * 8)} questions in 3 rounds" in text
    assert "Nothing to fix." in text
    assert "secretword" not in result.output


@pytest.mark.slow
def test_a_node_with_services_is_ready(
    embedded_assets: None, own_file: Path, tiny_bert: Path, fill_mask_service: FillMaskService
) -> None:
    key = "llm-secret-9"
    with llama_server(key=key) as endpoint:
        result = check(
            "-c", "clients='own-data' k-shot=2 public-per-class=0 language-model='smollm2'",
            "-c", f"endpoint='{endpoint}' masked-lm='{tiny_bert}' api-key-env='LLM_KEY'",
            "-c", "price-per-million-input=1.0 masked-lm-key-env='FILL_KEY'",
            "-c", f"masked-lm-endpoint='{fill_mask_service.url}'",
            "-n", f"data-path='{own_file}'",
            LLM_KEY=key,
            FILL_KEY=fill_mask_service.key,
        )  # fmt: skip
    assert result.exit_code == 0, result.output
    text = said(result)
    assert endpoint in text
    assert "tokens read" in text
    assert "at the prices set" in text
    for secret in (key, fill_mask_service.key, "secretword"):
        assert secret not in result.output


def test_everything_that_is_wrong_is_listed(own_file: Path, tiny_bert: Path) -> None:
    """Nothing listens at the black box, the key of the masked LM is missing, data are few."""
    result = check(
        "-c", "clients='own-data' k-shot=9 public-per-class=0 language-model='m'",
        "-c", "endpoint='http://127.0.0.1:9/v1' api-key-env='LLM_KEY'",
        "-c", f"masked-lm='{tiny_bert}' masked-lm-endpoint='http://127.0.0.1:9/fill'",
        "-c", "masked-lm-key-env='NOT_THERE'",
        "-n", f"data-path='{own_file}'",
        LLM_KEY="llm-secret-9",
    )  # fmt: skip
    assert result.exit_code == 1
    text = said(result)
    assert "To fix (3)" in text
    assert "18 examples of each class are needed" in text
    assert "NOT_THERE" in text
    assert "http://127.0.0.1:9/v1" in text
    assert "llm-secret-9" not in result.output
    assert "secretword" not in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-c", "clients='own-data'"], "data-path is missing"),
        (["-n", "data-path='a.csv'"], "'simulated' and would not use it"),
        (["-c", "kshot=3"], "unknown key 'kshot'"),
        (["-c", "task='none'"], "unknown task 'none'"),
        (
            ["--num-clients", "9000", "-c", "masked-lm='/none' language-model='/none'"],
            "are needed for 9000 clients",
        ),
    ],
)
def test_settings_that_do_not_fit(arguments: list[str], words: str) -> None:
    result = check(*arguments)
    assert result.exit_code == 1
    assert words in said(result)


def test_a_node_without_torch_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, own_file: Path
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    findings = list(
        check_node(
            {**SMALL, "clients": "own-data", "public-per-class": 0},
            {"data-path": str(own_file)},
            num_clients=4,
        )
    )
    wrong = {f.subject: f.fix for f in findings if f.fix}
    assert wrong.keys() == {"masked LM", "black box"}
    assert "needs torch, and that is not installed here" in wrong["black box"]
    assert "endpoint and masked-lm-endpoint" in wrong["black box"]
