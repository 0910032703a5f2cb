"""How tests run the app, and copies of it to put files beside or to change."""

import os
import shutil
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

# Few clients are done before a second process has loaded its models.
ONE_PROCESS = ("--cpus-per-client", str(os.cpu_count() or 1))


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
