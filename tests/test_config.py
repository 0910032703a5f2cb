import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.config_rules import tracker_names
from feddtpt_flwr.data import TASKS
from strategies import METHODS

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def listed() -> dict[str, Any]:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    config: dict[str, Any] = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    return config


def test_pyproject_lists_every_setting_with_its_default(listed: dict[str, Any]) -> None:
    defaults = RunConfig.from_run_config({}).to_run_config()
    assert listed == defaults
    assert {key: type(value) for key, value in listed.items()} == {
        key: type(value) for key, value in defaults.items()
    }
    assert list(listed) == list(defaults), "and in the same order"


def test_pyproject_gives_the_defaults(listed: dict[str, Any]) -> None:
    assert RunConfig.from_run_config(listed) == RunConfig.from_run_config({})
    assert RunConfig.from_run_config({}).task in TASKS


def test_every_setting_is_described() -> None:
    text = RunConfig.__doc__ or ""
    for name in RunConfig.model_fields:
        assert name in text


def test_settings_survive() -> None:
    config = RunConfig.from_run_config({"k-shot": 3, "dirichlet-alpha": 1, "guard": False})
    assert (config.k_shot, config.dirichlet_alpha, config.guard) == (3, 1.0, False)
    assert RunConfig.from_run_config(config.to_run_config()) == config
    assert hash(config) == hash(RunConfig.from_run_config(config.to_run_config()))


def test_a_config_does_not_change() -> None:
    config = RunConfig.from_run_config({})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("num-server-rounds", 0, "greater than or equal to 1"),
        ("num-server-rounds", "3", "valid integer"),
        ("num-server-rounds", 2.0, "valid integer"),
        ("seed", -1, "greater than or equal to 0"),
        ("seed", True, "valid integer"),
        ("task", 3, "valid string"),
        ("data-source", "web", "'default', 'embedded', 'hub' or 'files'"),
        ("k-shot", 0, "greater than or equal to 1"),
        ("public-per-class", -1, "greater than or equal to 0"),
        ("test-size", -1, "greater than or equal to 0"),
        ("partition", "uneven", "'iid' or 'dirichlet'"),
        ("dirichlet-alpha", 0.0, "greater than 0"),
        ("dirichlet-alpha", float("nan"), "finite"),
        ("dirichlet-alpha", "small", "valid number"),
        ("chat", "yes", "valid boolean"),
        ("chat", 1, "valid boolean"),
        ("dtype", "float8", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("max-answer-tokens", 0, "greater than or equal to 1"),
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", 2.1, "less than or equal to 2"),
        ("constrain", "regex", "'auto', 'json-schema', 'grammar', 'choice' or 'none'"),
        ("concurrency", 0, "greater than or equal to 1"),
        ("requests-per-minute", -1, "greater than or equal to 0"),
        ("tokens-per-minute", 0.5, "valid integer"),
        ("timeout", 0.0, "greater than 0"),
        ("timeout", float("inf"), "finite"),
        ("price-per-million-input", -1.0, "greater than or equal to 0"),
        ("price-per-million-output", float("nan"), "finite"),
        ("cache-size-mib", -1, "greater than or equal to 0"),
        ("max-prompt-tokens", 1, "greater than or equal to 2"),
        ("max-prompt-tokens", 257, "less than or equal to 256"),
        ("queries-per-round", 0, "greater than or equal to 1"),
        ("aggregation", "mean", "'feddtpt', 'literal'"),
        ("min-samples", -1, "greater than or equal to 0"),
        ("race-candidates", 0, "greater than or equal to 1"),
        ("fraction-fit", 0.0, "greater than 0"),
        ("fraction-fit", 1.5, "less than or equal to 1"),
        ("min-available-clients", 0, "greater than or equal to 1"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config({key: value})
    message = str(caught.value)
    assert message.startswith(f"{key} = {value!r}: ")
    assert allowed in message
    assert "\n" not in message


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config({"k-shot": 0, "seeed": 1, "guard": "on"})
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any("k-shot" in line for line in lines)
    assert any("guard" in line for line in lines)


def test_words_of_private_texts_are_no_public_tokens() -> None:
    with pytest.raises(ConfigError, match="search = 'bdpl': with privacy = 'public-tokens'"):
        RunConfig.from_run_config({"privacy": "public-tokens", "search": "bdpl"})


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown key 'kshot'") as caught:
        RunConfig.from_run_config({"kshot": 4})
    for key in RunConfig.from_run_config({}).to_run_config():
        assert key in str(caught.value)


@pytest.mark.parametrize("key", ["K-SHOT", "__class__", ""])
def test_only_the_names_of_the_configuration_are_keys(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown key"):
        RunConfig.from_run_config({key: 4})


def test_files_need_a_file() -> None:
    with pytest.raises(ConfigError, match=r'train-file = "".*needs a file'):
        RunConfig.from_run_config({"data-source": "files"})
    RunConfig.from_run_config({"data-source": "files", "train-file": "a.csv"})


@pytest.mark.parametrize("key", ["train-file", "test-file"])
def test_a_file_that_nothing_would_read_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} = 'a.csv': data-source = 'default' would not"):
        RunConfig.from_run_config({key: "a.csv"})


def test_no_value_of_an_unknown_key_is_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config({"api-key": "sk-secret"})
    assert "'api-key'" in str(caught.value)
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["me:secret@host/v1", "https://me:top/secret@host", "//a:secret@b"])
def test_no_password_of_a_url_is_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match=r"endpoint: .* is needed|allowed") as caught:
        RunConfig.from_run_config({"endpoint": url, "language-model": "m"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6", "A" * 24 + "7"])
def test_what_looks_like_a_key_names_no_variable(key: str) -> None:
    with pytest.raises(ConfigError, match=r"api-key-env: the name of .* not a key") as caught:
        RunConfig.from_run_config({"api-key-env": key})
    assert key not in str(caught.value)
    RunConfig.from_run_config({"api-key-env": "MY_COMPANYS_KEY_FOR_2026_PRODUCTION"})


def test_the_aggregations_are_the_strategys() -> None:
    assert set(get_args(RunConfig.model_fields["aggregation"].annotation)) == set(METHODS)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=3)))
def test_no_configuration_raises_anything_else(run_config: dict[str, Any]) -> None:
    with suppress(ConfigError):
        RunConfig.from_run_config(run_config)


REMOTE = {"endpoint": "http://127.0.0.1:8080/v1", "language-model": "some-model"}


def test_an_endpoint() -> None:
    config = RunConfig.from_run_config(
        REMOTE
        | {"chat": True, "system-message": "Be terse.", "temperature": 1}
        | {"extra-body": '{"reasoning_effort": "low"}'}
    )
    assert config.endpoint == "http://127.0.0.1:8080/v1"


def test_trackers_are_named_with_commas() -> None:
    assert tracker_names(" mlflow, tensorboard,mlflow") == ["mlflow", "tensorboard"]
    RunConfig.from_run_config({"trackers": "tensorboard, mlflow"})
    with pytest.raises(ConfigError, match="trackers = 'wandb': tensorboard, mlflow are allowed"):
        RunConfig.from_run_config({"trackers": "wandb"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"endpoint": "127.0.0.1:8080"}, "endpoint = '127.0.0.1:8080': a URL that begins with"),
        ({"endpoint": "ftp://host/v1"}, "endpoint = 'ftp://host/v1': a URL"),
        ({"endpoint": "http:///v1"}, "endpoint = 'http:///v1': a URL"),
        ({"endpoint": "http://host:99999"}, "endpoint = 'http://host:99999': a URL"),
        ({"language-model": "embedded"}, "language-model = 'embedded': with an endpoint"),
        ({"system-message": "Hi"}, "system-message = 'Hi': needs chat = true"),
        ({"endpoint": "", "temperature": 0.5}, "temperature = 0.5: is for a model behind an"),
        ({"endpoint": "", "system-message": "Hi"}, "system-message = 'Hi': is for a model behind"),
        ({"endpoint": "", "extra-body": "{}"}, "extra-body = '{}': is for a model behind"),
        ({"extra-body": "low"}, "extra-body: a JSON object is needed"),
        ({"extra-body": "[1]"}, "extra-body: a JSON object is needed"),
        ({"extra-body": '{"stop": ""}'}, "extra-body: 'stop' is what the app itself sends"),
    ],
)
def test_settings_that_do_not_fit_an_endpoint(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(REMOTE | settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": "https://user:secret@host/v1"},
        {"endpoint": "https://host/v1?key=secret"},
        {"api-key-env": "sk-secret"},
        {"api-key-env": ""},
    ],
)
def test_a_secret_in_the_settings_is_refused_and_not_repeated(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(REMOTE | settings)
    assert "secret" not in str(caught.value)
    assert "endpoint" in str(caught.value) or "api-key-env" in str(caught.value)


PRICED = REMOTE | {"price-per-million-input": 1.0}
WRITER = {
    "proposer": "prompt-generator",
    "generator-endpoint": "http://127.0.0.1:8080/v1",
    "generator-model": "some-writer",
}


def test_limits_and_a_prompt_generator() -> None:
    limits = {f"{kind}-per-{span}": 5 for kind in ("cost", "tokens") for span in ("round", "run")}
    RunConfig.from_run_config(PRICED | limits)
    RunConfig.from_run_config(WRITER | limits | {"generator-price-per-million-output": 2.0})
    RunConfig.from_run_config({"queries-per-run": 5, "seconds-per-round": 2, "seconds-per-run": 9})
    RunConfig.from_run_config({"proposer": "prompt-generator"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cost-per-run": -1.0}, "cost-per-run = -1.0: input should be greater than or equal to 0"),
        ({"tokens-per-round": 0.5}, "tokens-per-round = 0.5: input should be a valid integer"),
        ({"tokens-per-run": 9}, "tokens-per-run = 9: is for a model behind an endpoint"),
        (REMOTE | {"cost-per-round": 0.5}, "cost-per-round = 0.5: without price-per-million-input"),
        (
            {"seconds-per-round": 5, "privacy": "exponential"},
            "seconds-per-round = 5.0: with privacy = 'exponential' only queries-per-round is kept",
        ),
        ({"generator-model": "m"}, "generator-model = 'm': is for proposer = 'prompt-generator'"),
        (
            {"proposer": "prompt-generator", "generator-model": "m"},
            "generator-model = 'm': needs a generator-endpoint",
        ),
        (WRITER | {"generator-model": ""}, "generator-model = '': the model's name at"),
        (WRITER | {"generator-endpoint": "host"}, "generator-endpoint = 'host': a URL that begins"),
        (
            {"proposer": "prompt-generator", "privacy": "exponential"},
            "proposer = 'prompt-generator': privacy = 'exponential' would not use it",
        ),
        (WRITER | {"generator-key-env": "sk-secret"}, "generator-key-env: the name of an"),
        ({"api-key-env": "sk-secret"}, "api-key-env: the name of an environment variable"),
        ({"masked-lm-key-env": "hf_secretsecretsecret"}, "masked-lm-key-env: the name of an"),
        (
            {"privacy": "public-tokens", "epsilon": 0.1},
            "epsilon = 0.1: privacy = 'public-tokens' would not keep it; 'exponential' does",
        ),
        (
            {"privacy": "exponential", "search": "evolution"},
            "search = 'evolution': privacy = 'exponential' would not use it",
        ),
        (
            {"privacy": "exponential", "proposer": "random"},
            "proposer = 'random': privacy = 'exponential' would not use it",
        ),
        ({"privacy": "exponential", "aggregation": "best"}, "aggregation = 'best': with privacy"),
        (
            {"search": "bdpl", "proposer": "random"},
            "proposer = 'random': search = 'bdpl' would not use it",
        ),
        (
            {"search": "bdpl", "feedback": False},
            "feedback = false: search = 'bdpl' would not use it; true is allowed",
        ),
        (
            {"search": "bdpl", "reword": False},
            "reword = false: search = 'bdpl' would not use it; true is allowed",
        ),
        ({"generator-key-env": "sk-secret"}, "generator-key-env: is for proposer ="),
    ],
)
def test_limits_and_generators_that_could_not_be_kept(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.from_run_config(settings)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
