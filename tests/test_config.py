import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddtpt_flwr.config import AGGREGATION_METHODS, ConfigError, RunConfig
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
        ("max-prompt-tokens", 1, "greater than or equal to 2"),
        ("max-prompt-tokens", 257, "less than or equal to 256"),
        ("queries-per-round", 0, "greater than or equal to 1"),
        ("aggregation", "mean", "'feddtpt', 'average'"),
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


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown configuration key 'kshot'") as caught:
        RunConfig.from_run_config({"kshot": 4})
    for key in RunConfig.from_run_config({}).to_run_config():
        assert key in str(caught.value)


@pytest.mark.parametrize("key", ["K-SHOT", "__class__", ""])
def test_only_the_names_of_the_configuration_are_keys(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown configuration key"):
        RunConfig.from_run_config({key: 4})


def test_files_need_a_file() -> None:
    with pytest.raises(ConfigError, match=r'train-file = "".*needs a file'):
        RunConfig.from_run_config({"data-source": "files"})
    RunConfig.from_run_config({"data-source": "files", "train-file": "a.csv"})


def test_the_aggregations_are_the_strategys() -> None:
    assert set(AGGREGATION_METHODS) == set(METHODS)
    assert set(get_args(RunConfig.model_fields["aggregation"].annotation)) == set(METHODS)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=3)))
def test_no_configuration_raises_anything_else(run_config: dict[str, Any]) -> None:
    with suppress(ConfigError):
        RunConfig.from_run_config(run_config)
