"""What was installed where a result was computed."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from feddtpt_flwr import __version__


def of_run(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python, of this app, and of those packages that are installed."""
    own = {"python": platform.python_version(), "feddtpt-flwr": __version__}
    return own | installed(packages)


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed, without importing it."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
