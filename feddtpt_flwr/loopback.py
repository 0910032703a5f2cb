"""Traffic within this machine goes past proxies: what is private in it is meant for no other."""

from collections.abc import MutableMapping
from urllib.parse import urlsplit

NAMES = ("localhost", "127.0.0.1", "::1")

DIRECT = dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]"))
"""What httpx sends to no proxy, as its ``mounts``."""


def is_loopback(url: str) -> bool:
    """Return whether a URL's host is this machine by one of its usual names."""
    try:
        return urlsplit(url).hostname in NAMES
    except ValueError:
        return False


def spare(environment: MutableMapping[str, str]) -> None:
    """Have HTTP clients send to no proxy what is for this machine; by themselves they would.

    ``NO_PROXY`` says it, under a name that some read in capitals and others in small letters.
    """
    given = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    named = [name.strip() for name in given.split(",") if name.strip()]
    # A star spares all, but only where it stands alone.
    new = () if "*" in named else (name for name in NAMES if name not in named)
    spared = ",".join([*named, *new])
    environment["NO_PROXY"] = environment["no_proxy"] = spared
