"""What makes a node itself: its part of the data, and what its operator set for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.data.own import OwnFile, split_own
from feddtpt_flwr.experiment import load_data, load_task

OVERRIDES = (
    "language-model",
    "endpoint",
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
    "device",
    "dtype",
    "train-file",
    "queries-per-round",
)
"""Settings of the run that a node config may replace for its node: where its models and the public
set's file are, and how much a slow one is asked."""


class _NodeSettings(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
        populate_by_name=True,
    )

    node_name: str = ""
    partition_id: int | None = Field(None, ge=0)
    num_partitions: int | None = Field(None, ge=1)
    data_path: str = ""
    data_columns: str = ""
    data_labels: str = ""


@dataclass(frozen=True)
class Part:
    """Which part of the run's data a simulated node has: ``number`` of ``total``, from 0."""

    number: int
    total: int


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
    """

    run: RunConfig
    name: str
    examples: OwnFile | Part

    @classmethod
    def read(cls, run_config: Mapping[str, Any], node_config: Mapping[str, Any]) -> "NodeConfig":
        """Read and check Flower's run config and node config together.

        Raises
        ------
        ConfigError
            If a key is unknown, a value is not allowed, or the node config does not fit the run's
            ``clients``: partitions for ``"simulated"``, a file for ``"own-data"``.
        """
        replaced = {key: value for key, value in node_config.items() if key in OVERRIDES}
        run = RunConfig.from_run_config({**run_config, **replaced})
        try:
            node = _NodeSettings.model_validate(
                {key: value for key, value in node_config.items() if key not in OVERRIDES}
            )
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(e) for e in error.errors())) from None
        examples = _own_file(node) if run.clients == "own-data" else _part(node)
        return cls(run, node.node_name, examples)


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
    """

    name: str
    config: RunConfig
    data: ClientData
    public: tuple[Example, ...]


def load_node(config: NodeConfig, node_id: int) -> Node:
    """Load a node's examples.

    Parameters
    ----------
    config : NodeConfig
        Settings of the run and the node.
    node_id : int
        Flower's number of the node; the name of one that has no other.

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
    return Node(config.name or f"node-{node_id}", run, own, public)


def load_public(config: RunConfig) -> tuple[tuple[Example, ...], frozenset[str]]:
    """Return the public set, and the inputs that no node may take for its private examples.

    Those are the public set's and the held-out examples'. Without a public set nothing is loaded:
    a node then needs no access to the run's data.
    """
    if not config.public_per_class:
        return (), frozenset()
    data = load_data(config, 0)
    return data.public, frozenset(e.input for e in (*data.public, *data.test))


def _own_file(node: _NodeSettings) -> OwnFile:
    if node.partition_id is not None or node.num_partitions is not None:
        raise ConfigError(
            f"node config: partition-id = {node.partition_id}: only clients = 'simulated' has "
            "partitions; this run has clients = 'own-data'"
        )
    if not node.data_path:
        raise ConfigError(
            "node config: data-path is missing: with clients = 'own-data' every node names its "
            "file, as in flower-supernode --node-config \"data-path='/data/reviews.csv'\""
        )
    return OwnFile(
        Path(node.data_path).expanduser(),
        _mapping("data-columns", node.data_columns),
        _mapping("data-labels", node.data_labels),
    )


def _part(node: _NodeSettings) -> Part:
    for key in ("data_path", "data_columns", "data_labels"):
        if value := getattr(node, key):
            raise ConfigError(
                f"node config: {key.replace('_', '-')} = {value!r}: this run has clients = "
                "'simulated' and would not use it; data of the nodes' own need clients = 'own-data'"
            )
    if node.partition_id is None or node.num_partitions is None:
        raise ConfigError(
            "node config: partition-id or num-partitions is missing: clients = 'simulated' needs "
            "both; for data of the nodes' own set clients = 'own-data'"
        )
    if node.partition_id >= node.num_partitions:
        raise ConfigError(
            f"node config: partition-id = {node.partition_id}: 0 to num-partitions - 1 = "
            f"{node.num_partitions - 1} is allowed"
        )
    return Part(node.partition_id, node.num_partitions)


def _mapping(key: str, text: str) -> dict[str, str]:
    """Read ``"a=b, c=d"``."""
    pairs = [pair.split("=") for pair in text.split(",") if pair.strip()]
    if any(len(pair) != 2 or not all(part.strip() for part in pair) for pair in pairs):
        raise ConfigError(
            f"node config: {key} = {text!r}: pairs 'in the file=in the task' with commas between "
            "them are needed, as in 'bad=0, good=1'"
        )
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}


def _explain(error: Any) -> str:
    key, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "extra_forbidden":
        known = [name.replace("_", "-") for name in _NodeSettings.model_fields]
        return f"node config: unknown key {key!r}; keys: {', '.join([*known, *OVERRIDES])}"
    return f"node config: {key} = {value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
