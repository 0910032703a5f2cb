"""Files that only their owner may read, since they tell of private texts; and files that last."""

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


def write_through(file: Path, text: str) -> None:
    """Write a text file so that it is on the disk, and not on its way there.

    Where it is to take the place of another one, a power failure may otherwise leave neither.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    with file.open("w", encoding="utf-8") as opened:
        opened.write(text)
        flush(opened)


def flush_folder(folder: Path) -> None:
    """Wait until a file that was made in a folder has its name there on the disk."""
    if os.name == "posix":  # elsewhere a folder cannot be opened
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def flush(opened: IO[str]) -> None:
    """Wait until what was written is on the disk."""
    opened.flush()
    os.fsync(opened.fileno())
