"""Files that a setting names: on this machine, or packed with the app."""

from pathlib import Path

from feddtpt_flwr.data.errors import DataError

_APP = Path(__file__).parents[1]


def find_file(name: str) -> Path:
    """Return the full path of a file, which may also lie in the app's folder.

    What Flower packs there (``.toml`` and ``.jsonl`` files among others) is on every node.

    Raises
    ------
    DataError
        If its folder may not be looked into.
    """
    path, packed = Path(name), _APP / name
    try:
        return (packed if packed.exists() and not path.exists() else path).resolve()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from None
