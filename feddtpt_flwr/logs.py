"""Log lines that say which run, round and node they belong to.

While a message or a run is at work, every record of Flower's logger, to which this package writes
too, has the attributes ``run``, ``round`` and ``node``. With the environment variable
``FEDDTPT_LOG=json`` the processes of ServerApp and ClientApps write one JSON object a line.
"""

import json
import logging
import os
from datetime import UTC, datetime

from feddtpt_flwr.config import ConfigError

VARIABLE = "FEDDTPT_LOG"
_FORMATS = ("text", "json")
_logger = logging.getLogger("flwr")
# Not of a thread: a process works at one message, and its threads at that one too.
_fields: dict[str, str | int] = {}


def begin(**fields: str | int) -> None:
    """Forget the fields so far, and give these to all later log lines of this process.

    Raises
    ------
    ConfigError
        If ``FEDDTPT_LOG`` asks for anything but ``text`` or ``json``.
    """
    wanted = os.environ.get(VARIABLE, "text")
    if wanted not in _FORMATS:
        raise ConfigError(f"{VARIABLE} = {wanted!r}: {' or '.join(_FORMATS)} is allowed")
    _fields.clear()
    _fields.update(fields)
    _logger.addFilter(_add_fields)
    # It tells every request's URL at INFO, where a platform has opened the root logger.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if wanted == "json":
        for handler in _logger.handlers:
            handler.addFilter(_says_something)
            # Flower's handler formats by itself and never asks its formatter.
            handler.format = JsonLine().format  # type: ignore[method-assign]


def add(**fields: str | int) -> None:
    """Give these fields, too, to all later log lines of this process."""
    _fields.update(fields)


def show(text: str) -> None:
    """Print what is for people; nothing where the log is for programs."""
    if os.environ.get(VARIABLE) != "json":
        print(text, flush=True)


class JsonLine(logging.Formatter):
    """One JSON object: ``time``, ``level``, the fields, ``message``, and ``exception`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            **{key: getattr(record, key) for key in _fields if hasattr(record, key)},
            "message": record.getMessage().strip(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _add_fields(record: logging.LogRecord) -> bool:
    record.__dict__.update(_fields)
    return True


def _says_something(record: logging.LogRecord) -> bool:
    """Leave out the empty lines by which Flower structures its log for people."""
    return bool(record.getMessage().strip())
