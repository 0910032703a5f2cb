"""When and where figures were measured."""

import os
import platform
from datetime import UTC, datetime


def stamp() -> dict[str, str]:
    """Return ``date`` and ``machine`` for a file of results."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
    }
