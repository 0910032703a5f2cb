"""The project's further Flower apps, written as folders of their own.

A Flower app is a folder with a ``pyproject.toml`` that names one server and one client, and Flower
packs just what lies in it. The checkout's own file describes the main app. Another app is a file
``apps/NAME.toml`` that says what differs; here it is put together with the checkout's packages and
dependencies, so that both apps run the same code.
"""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import tomli_w

PACKAGES = ("feddtpt_flwr", "strategies")
DOCUMENTS = ("README.md", "LICENSE")


class BundleError(ValueError):
    """There is no such app, or its folder cannot be written."""


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
