"""When, where and with what figures were measured."""

import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("feddtpt-flwr", "flwr", "torch", "transformers")
"""Packages whose versions may change what is measured."""


def stamp() -> dict[str, Any]:
    """Return ``date``, ``machine`` and ``versions`` for a file of results."""
    return {
        **time_and_place(),
        "versions": dict(_versions()),
    }


def time_and_place() -> dict[str, str]:
    """Return ``date`` and ``machine``."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}",
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


def _processor() -> str:
    with suppress(OSError):  # Linux alone has the file, and no other source of the name
        names = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return names[1]
    return platform.processor() or platform.machine()


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)  # an import of torch alone takes seconds
        except PackageNotFoundError:
            continue  # whoever measures without it need not have it
