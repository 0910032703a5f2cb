import tomllib
from pathlib import Path
from typing import Any

import pytest

from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.server_app import _warn_of_rounding

APP = Path(__file__).parents[2] / "apps" / "fedpit.toml"


def test_the_app_lists_every_setting_with_its_default() -> None:
    listed = tomllib.loads(APP.read_text(encoding="utf-8"))["config"]
    assert listed == FedPITConfig.from_run_config({}).to_run_config()
    assert FedPITConfig.from_run_config(listed) == FedPITConfig.from_run_config({})


def test_every_setting_is_described() -> None:
    described = (FedPITConfig.__doc__ or "").split("Parameters")[1]
    for name in FedPITConfig.model_fields:
        assert name in described


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"beta": 1.5}, ["beta = 1.5", "less than or equal to 1"]),
        ({"beta": float("nan")}, ["beta = nan"]),
        ({"betta": 0.5}, ["unknown key 'betta'", "lora-rank"]),
        ({"num-selected": 64}, ["num-selected = 64", "num-candidates = 32"]),
        ({"training": "mixed", "beta": 1.0}, ["beta = 1.0", "nothing to mix"]),
        ({"upload-dtype": "int8"}, ["upload-dtype = 'int8'", "'bfloat16' or 'float32'"]),
        ({"proximal-mu": -0.1, "lora-rank": 0}, ["proximal-mu = -0.1", "lora-rank = 0"]),
        ({"learning-rate": float("inf")}, ["learning-rate = inf"]),
    ],
)
def test_a_value_that_is_not_allowed(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        FedPITConfig.from_run_config(settings)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("settings", "warns"),
    [
        ({}, False),
        ({"learning-rate": 1e-4}, True),
        ({"learning-rate": 1e-4, "upload-dtype": "float32"}, False),
    ],
)
def test_steps_that_bfloat16_rounds_away(
    settings: dict[str, Any], warns: bool, warned: list[str]
) -> None:
    _warn_of_rounding(FedPITConfig.from_run_config(settings))
    assert any("learning-rate = 0.0001 with" in line for line in warned) == warns


def test_only_beta_1_makes_no_synthetic_data() -> None:
    assert FedPITConfig.from_run_config({"beta": 0.99}).synthetic
    assert not FedPITConfig.from_run_config({"beta": 1.0}).synthetic
