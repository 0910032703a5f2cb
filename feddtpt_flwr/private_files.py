"""Files that only their owner may read: what is in them tells something of private texts."""

import os
from pathlib import Path
from typing import IO, Literal


def open_private(file: Path, mode: Literal["w", "a"]) -> IO[str]:
    """Open a text file; if it is made just now, with rights for its owner only.

    Raises
    ------
    OSError
        If it cannot be opened.
    """
    return open(
        file, mode, encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
    )
