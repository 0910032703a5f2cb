"""The prompts that clients tune on their private examples and show nobody (``"synthetic"``).

Each is a line in the state file (`client_state`) of the search that found it, so that it is kept
and removed with that: Flower's own client state ends with the SuperNode.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from logging import WARNING
from pathlib import Path

from flwr.common import log

from feddtpt_flwr.client_state import remove_old, state_file, step

_KEY = "own-prompt"


@dataclass(frozen=True)
class OwnPrompt:
    """What a client's private search has found last.

    Attributes
    ----------
    run : str
        Name of the run, which is that of its folder on the server.
    client : str
        Name of the client.
    round : int
        Round of the search, 1 or more.
    prompt : str
        Its text.
    accuracy : float, optional
        On the client's validation examples, in [0, 1]; None if the black box did not answer.
    """

    run: str
    client: str
    round: int
    prompt: str
    accuracy: float | None


def search_name(client: str) -> str:
    """Return the name under which a client's private search keeps its state."""
    return f"{client}, its own prompt"  # no name that a client is likely to have


def keep(folder: Path, own: OwnPrompt) -> None:
    """Write a prompt into the state file of the search that found it, if that is kept at all.

    Parameters
    ----------
    folder : Path
        The cache folder.
    own : OwnPrompt
        What was found.
    """
    file = state_file(folder, own.run, search_name(own.client), "synthetic")
    line = json.dumps({"step": list(step(own.round, "search")), _KEY: asdict(own)})
    try:
        if file.exists():
            with file.open("a", encoding="utf-8") as opened:
                opened.write(line + "\n")
    except OSError as error:
        log(WARNING, "%s: the client's own prompt is not kept on disk: %s", file, error)


def kept(folder: Path) -> list[OwnPrompt]:
    """Return the last own prompt of every client and run on this machine, the newest at the end.

    What is older than it may be is removed.

    Parameters
    ----------
    folder : Path
        The cache folder.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    clients = folder / "clients"
    if clients.exists():
        remove_old(clients)
    files = sorted(clients.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    found = [_last(file.read_text(encoding="utf-8").splitlines()) for file in files]
    return [own for own in found if own]


def _last(lines: Iterable[str]) -> OwnPrompt | None:
    own = None
    for line in lines:
        try:
            own = OwnPrompt(**json.loads(line)[_KEY])
        except (ValueError, TypeError, KeyError):
            continue  # another kind of line, or one that was cut off
    return own
