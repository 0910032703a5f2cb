"""Why a run cannot be run on this machine, found out before anything starts."""

import socket
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import DataError, HubSource, get_source
from simulations.suite import Job

SECONDS = 5.0
"""How long a server may take to answer."""


def obstacle(job: Job) -> str:
    """Return what keeps a run from being run here; empty if nothing is known to."""
    if job.unset:
        return f"{', '.join(job.unset)} not set"
    if job.baseline in {"fedbbt", "fedbpt"} and find_spec("cma") is None:
        return "cma is not installed: pip install cma"
    config = job.config
    if job.baseline and config.endpoint:
        return f"{job.baseline} needs the model itself, not an endpoint"
    return _data_obstacle(config) or _model_obstacle(config, proposes=not job.baseline)


def _data_obstacle(config: RunConfig) -> str:
    if config.data_source == "files":
        names = [name for name in (config.train_file, config.test_file) if name]
        missing = [name for name in names if not Path(name).is_file()]
        return f"no file {missing[0]}" if missing else ""
    if config.task.endswith(".toml"):
        return "" if Path(config.task).is_file() else f"no file {config.task}"
    kind = None if config.data_source == "default" else config.data_source
    try:
        source = get_source(config.task, kind)
    except DataError as error:
        return str(error)
    if isinstance(source, HubSource):
        return "" if Path(source.name).exists() else _hub_obstacle(source.name, "dataset")
    return ""


def _model_obstacle(config: RunConfig, *, proposes: bool) -> str:
    if config.endpoint:
        found = _endpoint_obstacle(config.endpoint)
    else:
        found = _local_model_obstacle(config.language_model)
    if found or not proposes:
        return found
    if config.masked_lm_endpoint:
        return _endpoint_obstacle(config.masked_lm_endpoint)
    return _local_model_obstacle(config.masked_lm)


def _local_model_obstacle(model: str) -> str:
    if model == EMBEDDED or Path(model).exists():
        return ""
    return f"no file {model}" if model.endswith(".gguf") else _hub_obstacle(model, "model")


@cache
def _hub_obstacle(name: str, kind: Literal["model", "dataset"]) -> str:
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError

    api = HfApi()
    try:
        # Anyone may read about a gated repository; its files are for those who were let in.
        if getattr(api.repo_info(name, repo_type=kind, timeout=SECONDS), "gated", False):
            api.auth_check(name, repo_type=kind)
    except Exception as error:
        # Offline, what was loaded before is still there.
        marker = "config.json" if kind == "model" else "README.md"
        if isinstance(try_to_load_from_cache(name, marker, repo_type=kind), str):
            return ""
        if isinstance(error, GatedRepoError):
            return f"hub {kind} {name} is gated, and access has not been granted"
        return f"hub {kind} {name} not reachable ({type(error).__name__})"
    return ""


@cache
def _endpoint_obstacle(url: str) -> str:
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=SECONDS):
            return ""
    except OSError as error:
        return f"endpoint {parts.hostname}:{port} not reachable ({type(error).__name__})"
