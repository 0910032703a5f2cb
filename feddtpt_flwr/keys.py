"""Keys of services, from the environment alone."""

import os

from feddtpt_flwr.config import ConfigError


def read_key(variable: str) -> str:
    """Return the key in an environment variable; empty if it is not set.

    Files of keys often end with a line break, which is left out.

    Parameters
    ----------
    variable : str
        The variable's name; empty for no key.

    Raises
    ------
    ConfigError
        If the key cannot be sent.
    """
    key = os.environ.get(variable, "").strip() if variable else ""
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"environment variable {variable}: the key in it holds characters that no HTTP header "
            "can; printable ASCII is allowed"
        )
    return key
