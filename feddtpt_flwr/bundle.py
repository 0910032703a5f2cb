"""The project's Flower apps, written as folders of their own.

A Flower app is a folder with a ``pyproject.toml`` that names one server and one client, and Flower
packs just what lies in it. The checkout's own file describes the main app. Another app is a file
``apps/NAME.toml`` that says what differs; here it is put together with the checkout's packages and
dependencies, so that both apps run the same code.
"""

import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tomli_w
from flwr.common.constant import FAB_EXCLUDE_PATTERNS, FAB_INCLUDE_PATTERNS
from pathspec import GitIgnoreSpec

PACKAGES = ("feddtpt_flwr", "strategies")
DOCUMENTS = ("README.md", "LICENSE")


class BundleError(ValueError):
    """There is no such app, or its folder cannot be written."""


def copy_app(source: Path, target: Path) -> None:
    """Copy what Flower packs of an app's folder, to be packed from there.

    Packing a folder, Flower looks at each file in it, however deep and whatever is ignored: with a
    virtual environment beside the app that took 6 s of processor time (2026-11-26). Folders that
    are not packed are not looked into here.

    Parameters
    ----------
    source : Path
        The app's folder.
    target : Path
        A folder that does not exist yet.
    """
    for path in _packed(source):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)


def _packed(folder: Path) -> Iterator[Path]:
    """Yield the files that Flower may pack, within the folder, and what tells it which to."""
    file = folder / ".gitignore"
    lines = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    ignored = GitIgnoreSpec.from_lines(lines.splitlines())
    # Flower leaves out some files by these patterns as well, but reads its own first.
    left_out = GitIgnoreSpec.from_lines([".git/", *FAB_EXCLUDE_PATTERNS])
    packed = GitIgnoreSpec.from_lines([*FAB_INCLUDE_PATTERNS, "/.gitignore"])
    for place, folders, files in os.walk(folder):
        within = Path(place).relative_to(folder)
        paths = {name: f"{(within / name).as_posix()}/" for name in folders}
        folders[:] = [
            name
            for name, path in paths.items()
            if not left_out.match_file(path) and not ignored.match_file(path)
        ]
        for path in (within / name for name in files):
            linked = (folder / path).is_symlink()  # Flower does not pack these
            if packed.match_file(path) and not ignored.match_file(path) and not linked:
                yield path


def read_app(checkout: Path, name: str) -> dict[str, Any]:
    """Return the content of ``apps/NAME.toml``.

    Raises
    ------
    BundleError
        If there is no such app.
    """
    file = checkout / "apps" / f"{name}.toml"
    if not file.is_file():
        there = ", ".join(sorted(path.stem for path in file.parent.glob("*.toml"))) or "none"
        raise BundleError(f"no app {name!r} in {file.parent}; apps there: {there}")
    return tomllib.loads(file.read_text(encoding="utf-8"))


def write_app(checkout: Path, name: str, folder: Path) -> None:
    """Write an app with all the code it runs to ``folder``.

    Parameters
    ----------
    checkout : Path
        The project's folder.
    name : str
        Name of a file in its ``apps`` without the suffix.
    folder : Path
        Made if it does not exist; Flower wants letters, digits and hyphens in its name.

    Raises
    ------
    BundleError
        If there is no such app, or the folder is not empty.
    """
    app = read_app(checkout, name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists and is not an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / package, folder / package, ignore=ignored)
    for document in DOCUMENTS:
        shutil.copy(checkout / document, folder / document)
    main = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))
    (folder / "pyproject.toml").write_text(tomli_w.dumps(_pyproject(main, app)), encoding="utf-8")


def _pyproject(main: dict[str, Any], app: dict[str, Any]) -> dict[str, Any]:
    """Return the app's ``pyproject.toml``: the main app's, with the app's own parts."""
    project, tool = main["project"], main["tool"]
    kept = ("version", "readme", "license", "requires-python")
    flower = {**tool["flwr"]["app"], "components": app["components"], "config": app["config"]}
    further = project["optional-dependencies"][app["extra"]]
    return {
        "build-system": main["build-system"],
        "project": {
            "name": app["name"],
            "description": app["description"],
            **{key: project[key] for key in kept},
            "dependencies": [*project["dependencies"], *further],
        },
        "dependency-groups": main["dependency-groups"],
        "tool": {
            "uv": tool["uv"],
            "hatch": {"build": {"targets": {"wheel": {"packages": list(PACKAGES)}}}},
            "flwr": {"app": flower},
        },
    }
