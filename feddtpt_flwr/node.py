"""What makes a node itself: its part of the data, and what its operator set for it."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from logging import ERROR
from pathlib import Path
from typing import Any

from flwr.common import Context, log
from pydantic import Field

from feddtpt_flwr.app_files import find_file
from feddtpt_flwr.checked_settings import kebab, keys_of
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.config_rules import LIMITS
from feddtpt_flwr.data import ClientData, DataError, Example
from feddtpt_flwr.data.own import OwnFile, split_own
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.node_settings import NodeSettings, Part
from feddtpt_flwr.privacy.ledger import LedgerFile

OVERRIDES = (
    "language-model",
    "endpoint",
    "extra-body",
    "api-key-env",
    "concurrency",
    "requests-per-minute",
    "tokens-per-minute",
    "timeout",
    "price-per-million-input",
    "price-per-million-output",
    "cache-size-mib",
    "masked-lm",
    "masked-lm-endpoint",
    "masked-lm-key-env",
    "generator-endpoint",
    "generator-model",
    "generator-key-env",
    "generator-price-per-million-input",
    "generator-price-per-million-output",
    "device",
    "dtype",
    "train-file",
    "queries-per-round",
    *map(kebab, LIMITS),
)
"""Settings of the run that a node config may replace for its node: where its models and the public
set's file are, and how much it may be asked and spend."""


class _Settings(NodeSettings):
    data_columns: str = ""
    data_labels: str = ""
    epsilon_ledger: str = ""
    epsilon_limit: float = Field(0.0, ge=0, allow_inf_nan=False)


@dataclass(frozen=True)
class NodeConfig:
    """A run's settings as one node has them, and where the node's examples are.

    Attributes
    ----------
    run : RunConfig
        The run's settings with this node's replacements.
    name : str
        What the server's history calls the node; empty if the operator did not say.
    examples : OwnFile or Part
        Where its examples are: in a file of its own, or among the run's data.
    ledger : LedgerFile, optional
        Where it keeps what of its epsilon is spent; None if there is none to be kept on disk.
    """

    run: RunConfig
    name: str
    examples: OwnFile | Part
    ledger: LedgerFile | None = None

    @classmethod
    def read(cls, run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> "NodeConfig":
        """Read and check Flower's run config and node config together.

        Raises
        ------
        ConfigError
            If a key is unknown, a value is not allowed, or the node config does not fit the run's
            ``clients`` and ``privacy``: partitions for ``"simulated"``, a file for ``"own-data"``,
            a limit of epsilon where nothing keeps to an epsilon.
        """
        replaced = {key: value for key, value in node_config.items() if key in OVERRIDES}
        run = RunConfig.from_run_config({**run_config, **replaced})
        node = _Settings.read(node_config, OVERRIDES)
        examples = _own_file(node) if run.clients == "own-data" else node.part()
        if isinstance(examples, OwnFile):
            _keep_private(examples.path, run)
        return cls(run, node.node_name, examples, _ledger(node, run, examples))


@dataclass(frozen=True)
class Node:
    """Everything that one client needs.

    Attributes
    ----------
    name : str
        How the server's history calls it.
    config : RunConfig
        Settings of the run on this node.
    data : ClientData
        Its private examples.
    public : tuple[Example, ...]
        The public set, the same on all nodes.
    ledger : LedgerFile, optional
        See `NodeConfig`.
    """

    name: str
    config: RunConfig
    data: ClientData
    public: tuple[Example, ...]
    ledger: LedgerFile | None = None


def of_this_app(context: Context) -> Context:
    """Return the context with this app's keys only, for an app that has settings of its own.

    A misspelt key of this app's is then taken for one of the others.
    """
    run, node = keys_of(RunConfig), [*OVERRIDES, *keys_of(_Settings)]
    return Context(
        run_id=context.run_id,
        node_id=context.node_id,
        node_config={k: value for k, value in context.node_config.items() if k in node},
        state=context.state,
        run_config={k: value for k, value in context.run_config.items() if k in run},
    )


def load_node(config: NodeConfig, node_id: int, run_id: int = 0) -> Node:
    """Load a node's examples.

    Parameters
    ----------
    config : NodeConfig
        Settings of the run and the node.
    node_id : int
        Flower's number of the node; the name of one that has no other.
    run_id : int
        Flower's number of the run.

    Raises
    ------
    DataError
        If a file or source lacks a column, a label or enough examples.
    """
    run = config.run
    if isinstance(examples := config.examples, Part):
        data = load_data(run, examples.total)
        name = config.name or str(examples.number)
        return Node(name, run, data.clients[examples.number], data.public)
    public, shared = load_public(run)
    own = split_own(examples, load_task(run), k_shot=run.k_shot, seed=run.seed, shared=shared)
    ledger = config.ledger and replace(config.ledger, run=str(run_id))
    return Node(config.name or f"node-{node_id}", run, own, public, ledger)


def load_public(config: RunConfig) -> tuple[tuple[Example, ...], frozenset[str]]:
    """Return the public set, and the inputs that no node may take for its private examples.

    Those are the public set's and the held-out examples'. Without a public set nothing is loaded:
    a node then needs no access to the run's data.
    """
    if not config.public_per_class:
        return (), frozenset()
    try:
        data = load_data(config, 0)
    except DataError as error:
        # The message goes to the server, and the file may be one that this node has by mistake.
        log(ERROR, "%s", error)
        raise DataError(
            "the run's public examples cannot be loaded on this node; its own log says why"
        ) from None
    return data.public, frozenset(e.input for e in (*data.public, *data.test))


def _own_file(node: _Settings) -> OwnFile:
    return OwnFile(
        node.own_path("/data/reviews.csv"),
        _mapping("data-columns", node.data_columns),
        _mapping("data-labels", node.data_labels),
    )


def _keep_private(path: Path, run: RunConfig) -> None:
    """Refuse a node's own file where the run takes it for one that everybody may see."""
    for key in ("train_file", "test_file"):
        name = getattr(run, key)
        with suppress(OSError):  # one that is not there is told of when it is read
            if name and find_file(name).samefile(path):
                raise ConfigError(
                    f"node config: data-path: it is the file of {kebab(key)} = {name!r}, whose "
                    "examples are public; the node's own must be in another one"
                )


def _ledger(node: _Settings, run: RunConfig, examples: OwnFile | Part) -> LedgerFile | None:
    """Return the ledger of a node whose own examples a run promises an epsilon.

    It lies beside the examples unless the operator names another file, so that it stays with them.
    """
    if run.privacy == "exponential" and isinstance(examples, OwnFile):
        own = examples.path.resolve()  # of whatever link to it is named
        beside = own.with_name(f"{own.name}.epsilon.jsonl")
        path = Path(node.epsilon_ledger).expanduser() if node.epsilon_ledger else beside
        if node.epsilon_ledger and not path.is_absolute():
            # A SuperNode that was started elsewhere would begin another one.
            raise ConfigError(
                f"node config: epsilon-ledger = {node.epsilon_ledger!r}: a whole path is needed"
            )
        return LedgerFile(path, node.epsilon_limit)
    for key, value in (
        ("epsilon-limit", node.epsilon_limit),
        ("epsilon-ledger", node.epsilon_ledger),
    ):
        if value:
            raise ConfigError(
                f"node config: {key} = {value!r}: this run has privacy = {run.privacy!r} and "
                f"clients = {run.clients!r}; only privacy = 'exponential' with clients = "
                "'own-data' keeps to an epsilon that a node can limit"
            )
    return None


def _mapping(key: str, text: str) -> dict[str, str]:
    """Read ``"a=b, c=d"``, or a JSON object where names have commas or equals signs."""
    try:
        pairs = _json_pairs(text) if text.lstrip().startswith("{") else _plain_pairs(text)
    except ValueError:
        raise ConfigError(
            f"node config: {key} = {text!r}: pairs 'in the file=in the task' with commas between "
            "them are needed, as in 'bad=0, good=1', or a JSON object, as in "
            """'{"bad, or worse": "0", "good": "1"}'"""
        ) from None
    for ours, count in Counter(ours for ours, _ in pairs).items():
        if count > 1:
            raise ConfigError(
                f"node config: {key} = {text!r}: {ours!r} stands {count} times on the left; once "
                "is allowed"
            )
    return dict(pairs)


def _plain_pairs(text: str) -> list[tuple[str, str]]:
    pairs = [pair.split("=") for pair in text.split(",") if pair.strip()]
    return _stripped((ours, theirs) for ours, theirs in pairs)


def _json_pairs(text: str) -> list[tuple[str, str]]:
    # As pairs, so that none is lost; labels may be whole numbers.
    return _stripped(json.loads(text, object_pairs_hook=list, parse_int=str))


def _stripped(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[str, str]]:
    """Raise ValueError if anything is empty or no string."""
    stripped = []
    for pair in pairs:
        if not all(isinstance(part, str) and part.strip() for part in pair):
            raise ValueError
        ours, theirs = pair
        stripped.append((ours.strip(), theirs.strip()))
    return stripped
