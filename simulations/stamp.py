"""When, where and with what figures were measured."""

import os
import platform
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("feddtpt-flwr", "flwr", "torch", "transformers")
"""Packages whose versions may change what is measured."""


def stamp() -> dict[str, Any]:
    """Return ``date``, ``machine`` and ``versions`` for a file of results."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "versions": dict(_versions()),
    }


def as_text(result: Mapping[str, Any]) -> str:
    """Return the stamp of a file of results for its table.

    Parameters
    ----------
    result : Mapping[str, Any]
        What `stamp` gave, besides whatever else; files from before versions were kept lack them.
    """
    versions = [f"{name} {number}" for name, number in result.get("versions", {}).items()]
    return ", ".join([result["date"], result["machine"], *versions])


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)  # an import of torch alone takes seconds
        except PackageNotFoundError:
            continue  # whoever measures without it need not have it
