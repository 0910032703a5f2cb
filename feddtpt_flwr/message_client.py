"""The client for Flower's message API: the same search, called by ``@app.train()``.

With the app's own settings and data, `train` and `evaluate` are all that a ClientApp needs, and
`app` is one. With examples that your own code has read, hand what `client_of` returns to
`reply_to_train` and `reply_to_evaluate`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import NDArrays, Scalar

from feddtpt_flwr.client_app import PromptTuningClient, client_for, plain_client
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.discretion import discreet
from feddtpt_flwr.node import Node, of_this_app
from feddtpt_flwr.privacy.clients import protected
from feddtpt_flwr.privacy.ledger import LedgerFile
from strategies.wire import ROUND_KEY, UploadError

NUM_EXAMPLES_KEY = "num-examples"


def train(message: Message, context: Context) -> Message:
    """Search from the global prompt in ``message``; reply with the local one."""
    with discreet(context):
        return reply_to_train(message, client_for(context))


def evaluate(message: Message, context: Context) -> Message:
    """Count the right answers of every prompt in ``message``; reply with the counts."""
    with discreet(context):
        return reply_to_evaluate(message, client_for(context))


def client_of(
    context: Context,
    data: ClientData,
    public: tuple[Example, ...] = (),
    *,
    name: str = "",
    ledger: LedgerFile | None = None,
) -> NumPyClient:
    """Return the client of a node whose examples your own code has read.

    Parameters
    ----------
    context : Context
        Its run config holds the app's settings; others, and the node config, are left alone.
    data : ClientData
        The node's private examples.
    public : tuple[Example, ...]
        The public set, the same on all nodes.
    name : str
        How the server's history calls the node; by default Flower's number.
    ledger : LedgerFile, optional
        Where the node keeps what of its epsilon is spent (``privacy = "exponential"``); by default
        in Flower's client state, which ends with the SuperNode.

    Raises
    ------
    ConfigError
        If a setting is not allowed, or the ledger has a limit that the run's ``privacy`` does not
        keep.
    """
    config = RunConfig.from_run_config(of_this_app(context).run_config)
    if ledger:
        if ledger.limit and config.privacy != "exponential":
            raise ConfigError(
                f"privacy = {config.privacy!r}: nothing keeps to the epsilon that this node's "
                "ledger limits; only 'exponential' does"
            )
        ledger = replace(ledger, run=str(context.run_id))
    node = Node(name or f"node-{context.node_id}", config, data, public, ledger)
    return protected(node, context.state, plain_client)


def reply_to_train(message: Message, client: NumPyClient) -> Message:
    """Let ``client`` search; reply with its prompt.

    Parameters
    ----------
    message : Message
        One ArrayRecord with the global prompt, one ConfigRecord with ``server-round``.
    client : NumPyClient
        What `client_of` returns, or a client of your own.

    Returns
    -------
    Message
        The records ``arrays``, ``metrics`` and ``report``; the last has what is no number.

    Raises
    ------
    UploadError
        If the message is malformed; nothing has been asked then.
    ConfigError
        If ``client`` would not do what its run's ``privacy`` promises.
    """
    _require_protected(client)
    arrays, config = _read(message)
    prompts, num_examples, metrics = client.fit(arrays, config)
    content = _records(num_examples, metrics)
    content["arrays"] = ArrayRecord(prompts)
    return Message(content, reply_to=message)


def reply_to_evaluate(message: Message, client: NumPyClient) -> Message:
    """Let ``client`` count right answers; reply with the counts.

    Parameters, records and errors are those of `reply_to_train`, with one array for each prompt
    to be counted and none in the reply.
    """
    _require_protected(client)
    loss, num_examples, metrics = client.evaluate(*_read(message))
    return Message(_records(num_examples, {**metrics, "loss": loss}), reply_to=message)


def _require_protected(client: NumPyClient) -> None:
    if isinstance(client, PromptTuningClient) and client.privacy != "none":
        raise ConfigError(
            f"privacy = {client.privacy!r}: a PromptTuningClient alone does not keep to it; take "
            "the client that message_client.client_of returns"
        )


def _read(message: Message) -> tuple[NDArrays, dict[str, Any]]:
    arrays = list(message.content.array_records.values())
    configs = list(message.content.config_records.values())
    if len(arrays) != 1 or len(configs) != 1 or ROUND_KEY not in configs[0]:
        raise UploadError(
            f"one ArrayRecord and one ConfigRecord with {ROUND_KEY!r} are needed, "
            f"got {len(arrays)} and {len(configs)}"
        )
    return arrays[0].to_numpy_ndarrays(), dict(configs[0])


def _records(num_examples: int, metrics: dict[str, Scalar]) -> RecordDict:
    """Sort what a client reports into numbers, which servers average, and the rest."""
    numbers: dict[str, Any] = {NUM_EXAMPLES_KEY: _plain(num_examples)}
    rest: dict[str, Any] = {}
    for key, reported in metrics.items():
        value = _plain(reported)
        averaged = isinstance(value, (int, float)) and not isinstance(value, bool)
        (numbers if averaged and key != ROUND_KEY else rest)[key] = value
    return RecordDict({"metrics": MetricRecord(numbers), "report": ConfigRecord(rest)})


def _plain(value: Any) -> Any:
    """Return a NumPy number as Python's, which alone Flower's records take."""
    return value.item() if isinstance(value, np.generic) else value


app = ClientApp()
app.train()(train)
app.evaluate()(evaluate)
