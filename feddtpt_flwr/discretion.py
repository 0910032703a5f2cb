"""What a client's errors tell the server: Flower sends it the message of every exception."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR

from flwr.app import Context, Message
from flwr.common import log

from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.checked_settings import ConfigError
from feddtpt_flwr.client_report import without_addresses
from feddtpt_flwr.data import DataError
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.privacy.ledger import LedgerError
from strategies.wire import UploadError

MADE_TO_BE_TOLD = (ConfigError, DataError, AssetError, ModelError, LedgerError, UploadError)
"""Errors whose messages hold neither a key nor anything of an example."""


@contextmanager
def discreet(context: Context) -> Iterator[None]:
    """Let no exception out that tells more of the node than it means to.

    The node's own log has all of it. Other exceptions than `MADE_TO_BE_TOLD` lose their message,
    and with ``privacy = "exponential"`` all do: even what goes wrong may depend on an example.

    Parameters
    ----------
    context : Context
        The node's.
    """
    settings = {**context.run_config, **context.node_config}
    try:
        yield
    except Exception as error:
        log(ERROR, "%s", error, exc_info=not isinstance(error, MADE_TO_BE_TOLD))
        if settings.get("privacy") == "exponential":
            raise RuntimeError("this node cannot answer; its own log says why") from None
        if isinstance(error, MADE_TO_BE_TOLD):
            raise type(error)(without_addresses(str(error), settings)) from None
        raise RuntimeError(f"{type(error).__name__}; this node's own log says more") from None


def discretion(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Be `discreet` about all that a ClientApp does; a mod for Flower."""
    with discreet(context):
        return call_next(message, context)
