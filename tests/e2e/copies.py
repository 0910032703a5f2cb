"""Copies of the checkout, for tests that put files beside the app or change it."""

import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def copy_app(folder: Path, *others: str) -> Path:
    """Copy what Flower needs of the app, and ``others``, into a folder; return it."""
    for name in ("feddtpt_flwr", "strategies", "pyproject.toml", "README.md", "LICENSE", *others):
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copy(source, folder / name)
    return folder
