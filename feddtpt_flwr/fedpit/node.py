"""What makes a node of a FedPIT run itself: its private instructions and its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction, read_jsonl, separate
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.partition import divide
from feddtpt_flwr.fedpit.tasks import load_instructions
from feddtpt_flwr.language_model.weights import resolve_device
from feddtpt_flwr.node_settings import NodeSettings

OVERRIDES = ("language-model", "device", "dtype")
"""Settings of the run that a node config may replace: where the node's copy of the model is."""


@dataclass(frozen=True)
class Node:
    """Everything that one client needs.

    Attributes
    ----------
    name : str
        How the server's history calls it.
    config : FedPITConfig
        Settings of the run on this node.
    private : tuple of Instruction
        Its own instructions.
    """

    name: str
    config: FedPITConfig
    private: tuple[Instruction, ...]


def load_node(run_config: Mapping[str, Any], node_config: Mapping[str, Any], node_id: int) -> Node:
    """Read a node's settings and its private instructions.

    Parameters
    ----------
    run_config, node_config : Mapping[str, Any]
        As Flower hands them to a client.
    node_id : int
        Flower's number of the node; the name of one that has no other.

    Raises
    ------
    ConfigError
        If a setting is not allowed, or the node config does not fit the run's ``clients``.
    DataError
        If the instructions cannot be had.
    """
    replaced = {key: value for key, value in node_config.items() if key in OVERRIDES}
    config = FedPITConfig.from_run_config({**run_config, **replaced})
    node = NodeSettings.read(node_config, OVERRIDES)
    if config.clients == "own-data":
        own = _own(config, node.own_path("/data/notes.jsonl"))
        return Node(node.node_name or f"node-{node_id}", config, own)
    part = node.part()
    private = divide(
        load_instructions(config).train,
        num_clients=part.total,
        examples_per_client=config.examples_per_client,
        partition=config.partition,
        dirichlet_alpha=config.dirichlet_alpha,
        seed=config.seed,
    )[part.number]
    return Node(node.node_name or str(part.number), config, private)


def adapted_model(config: FedPITConfig) -> AdaptedModel:
    """Return the model that the configuration names, built once per process.

    Raises
    ------
    ConfigError
        If there is no such model or device, a package is missing, or the model cannot read texts as
        long as the settings allow.
    """
    try:
        model = _model(
            config.language_model,
            config.lora_rank,
            config.seed,
            resolve_device(config.device),
            config.dtype,
            config.max_instruction_tokens,
            config.max_response_tokens,
        )
    except AssetError:
        raise
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"FedPIT needs {error.name}, which is not installed here: pip install "
            "'feddtpt-flwr[fedpit]'"
        ) from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"language-model = {config.language_model!r} with device = {config.device!r}: no "
            f"model can be adapted from this ({error})"
        ) from error
    _check_lengths(config, model)
    return model


def _check_lengths(config: FedPITConfig, model: AdaptedModel) -> None:
    shown = min(config.num_demonstrations, config.examples_per_client) if config.synthetic else 0
    longest, context = model.longest(shown), model.context
    if context is not None and longest > context:
        examples = f" and num-demonstrations = {config.num_demonstrations}" if shown else ""
        raise ConfigError(
            f"max-instruction-tokens = {config.max_instruction_tokens}, max-response-tokens = "
            f"{config.max_response_tokens}{examples}: make up to {longest} tokens, and "
            f"language-model = {config.language_model!r} reads at most {context}"
        )


def check_choices(config: FedPITConfig, model: AdaptedModel, rows: Sequence[Instruction]) -> None:
    """Check that every choice is short enough to be answered.

    Raises
    ------
    ConfigError
        If one is not. The message does not say what is in it.
    """
    choices = {choice for row in rows for choice in row.choices}
    longest = max(map(model.num_tokens, choices), default=0)
    if longest > config.max_response_tokens:
        raise ConfigError(
            f"max-response-tokens = {config.max_response_tokens}: no answer could be the longest "
            f"of the choices; {longest} or more are needed"
        )


@cache
def _model(
    name: str, rank: int, seed: int, device: str, dtype: str, max_asked: int, max_answered: int
) -> AdaptedModel:
    return AdaptedModel(
        name,
        rank=rank,
        seed=seed,
        device=device,
        dtype=dtype,
        max_instruction_tokens=max_asked,
        max_response_tokens=max_answered,
    )


def _own(config: FedPITConfig, path: Path) -> tuple[Instruction, ...]:
    rows = separate(read_jsonl(path), ()).train
    order = np.random.default_rng(config.seed).permutation(len(rows))
    return tuple(rows[i] for i in order[: config.examples_per_client])
