"""When, where and with what figures were measured."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from feddtpt_flwr.versions import installed

ROOT = Path(__file__).resolve().parent

PACKAGES = ("feddtpt-flwr", "flwr", "torch", "transformers")
"""Packages whose versions may change what is measured."""


def stamp() -> dict[str, Any]:
    """Return ``date``, ``machine``, ``versions`` and ``commit`` for a file of results.

    The commit is that of this checkout; there is none where the package was installed without.
    """
    found = commit()
    return {
        **time_and_place(),
        "versions": installed(PACKAGES),
        **({"commit": found} if found else {}),
    }


def time_and_place() -> dict[str, str]:
    """Return ``date`` and ``machine``."""
    parts = [
        f"{os.cpu_count()} cores",
        _processor(),
        *_graphics(),
        f"Python {platform.python_version()}",
    ]
    return {"date": datetime.now(UTC).date().isoformat(), "machine": ", ".join(parts)}


def as_text(result: Mapping[str, Any]) -> str:
    """Return the stamp of a file of results for its table.

    Parameters
    ----------
    result : Mapping[str, Any]
        What `stamp` gave, besides whatever else; files from before versions were kept lack them.
    """
    versions = [f"{name} {number}" for name, number in result.get("versions", {}).items()]
    commits = [f"commit {found}"] if (found := result.get("commit")) else []
    return ", ".join([result["date"], result["machine"], *versions, *commits])


def _processor() -> str:
    with suppress(OSError):  # Linux alone has the file, and no other source of the name
        names = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if names:
            return names[1]
    return platform.processor() or platform.machine()


def _graphics() -> Iterator[str]:
    """Yield the names of Nvidia's GPUs, as their driver says them: torch would take seconds."""
    with suppress(OSError):  # no result is lost for a name
        for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
            yield from re.findall(r"^Model:\s*(.*)$", file.read_text(), re.MULTILINE)


@cache
def commit() -> str:
    """Return the commit of the code that was loaded, with a mark if it had been changed."""
    describe = ("git", "describe", "--always", "--dirty", "--exclude=*")
    with suppress(OSError, subprocess.CalledProcessError):
        found = subprocess.run(  # noqa: S603 - git alone, with words that are written above
            describe, cwd=ROOT, capture_output=True, check=True, text=True
        )
        return found.stdout.strip()
    return ""
