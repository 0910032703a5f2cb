"""What makes a node itself: its part of the data, and what its operator set for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.config_rules import LIMITS, kebab
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.data.own import OwnFile, split_own
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.node_settings import NodeSettings, Part

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
        node = _Settings.read(node_config, OVERRIDES)
        examples = _own_file(node) if run.clients == "own-data" else node.part()
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


def _own_file(node: _Settings) -> OwnFile:
    return OwnFile(
        node.own_path("/data/reviews.csv"),
        _mapping("data-columns", node.data_columns),
        _mapping("data-labels", node.data_labels),
    )


def _mapping(key: str, text: str) -> dict[str, str]:
    """Read ``"a=b, c=d"``."""
    pairs = [pair.split("=") for pair in text.split(",") if pair.strip()]
    if any(len(pair) != 2 or not all(part.strip() for part in pair) for pair in pairs):
        raise ConfigError(
            f"node config: {key} = {text!r}: pairs 'in the file=in the task' with commas between "
            "them are needed, as in 'bad=0, good=1'"
        )
    return {ours.strip(): theirs.strip() for ours, theirs in pairs}
