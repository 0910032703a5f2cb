"""Files that a setting names: on this machine, or packed with the app."""

from pathlib import Path

from feddtpt_flwr.data.errors import DataError

_APP = Path(__file__).parents[1]


def find_file(name: str, app: Path | None = None) -> Path:
    """Return the full path of a file: in the app's folder, else from the current one.

    What Flower packs there (``.toml`` and ``.jsonl`` files among others) is on every node, and the
    same everywhere; in the folder where a node was started a file of that name may be an old one.
    A ``~`` at the beginning is the user's home.

    Parameters
    ----------
    name : str
        As the setting has it.
    app : Path, optional
        The app's folder, if it is not the one that this module runs from.

    Raises
    ------
    DataError
        If its folder may not be looked into, or there is no such home.
    """
    try:
        path = Path(name).expanduser()
        packed = (app or _APP) / path
        return (packed if packed.exists() else path).resolve()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}") from None
    except RuntimeError as error:
        raise DataError(f"{name}: {error}") from None
