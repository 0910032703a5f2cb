"""What a client tells the server besides its prompt: numbers, reasons, and the changes it made."""

import json
import re
from collections.abc import Mapping, Sequence
from logging import ERROR
from typing import Any
from urllib.parse import urlsplit

from flwr.common import Scalar, log

from feddtpt_flwr import __version__, models
from feddtpt_flwr.client_state import VERSION_KEY
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_task
from feddtpt_flwr.feedback import Trial
from feddtpt_flwr.generator import Writer
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.wire import (
    CLIENT_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    FROM_ARCHIVE_KEY,
    GAIN_KEY,
    GENERATOR_COMPLETION_TOKENS_KEY,
    GENERATOR_COST_KEY,
    GENERATOR_FALLBACKS_KEY,
    GENERATOR_PROMPT_TOKENS_KEY,
    GENERATOR_REQUESTS_KEY,
    MODEL_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    UNPARSED_KEY,
    USED_UP_KEY,
    VOCABULARY_KEY,
)


def counted(
    name: str,
    told: Mapping[str, Scalar],
    config: RunConfig,
    evaluator: Evaluator,
    failure: Exception | None,
) -> dict[str, Scalar]:
    """Return what every answer to the server tells: who asked how much, and what went wrong.

    Parameters
    ----------
    name : str
        The client.
    told : Mapping[str, Scalar]
        The message's configuration.
    config : RunConfig
        Settings of the run on this node.
    evaluator : Evaluator
        Which asked.
    failure : Exception, optional
        What ended it early; it is logged.
    """
    report: dict[str, Scalar] = {
        CLIENT_KEY: name,
        ROUND_KEY: int(told[ROUND_KEY]),
        MODEL_KEY: models.black_box(config),
        QUERIES_KEY: evaluator.budget.used,
        FROM_ARCHIVE_KEY: evaluator.from_archive,
        UNPARSED_KEY: evaluator.unparsed,
    }
    if usage := evaluator.usage:
        report |= {
            "requests": usage.requests,
            "retries": usage.retries,
            PROMPT_TOKENS_KEY: usage.prompt_tokens,
            COMPLETION_TOKENS_KEY: usage.completion_tokens,
            COST_KEY: models.prices(config).cost(usage),
        }
    if failure:
        log(ERROR, "client %s: %s", name, failure)
        report[FAILURE_KEY] = without_addresses(str(failure), config.to_run_config())
    return report


def without_addresses(text: str, settings: Mapping[str, Any]) -> str:
    """Return a text without the addresses of this node's services: nobody else needs them.

    Parameters
    ----------
    text : str
        What is to be told.
    settings : Mapping[str, Any]
        The node's, by their names in the configuration; whether they are allowed does not matter.
    """
    keys = ("generator-endpoint", "masked-lm-endpoint", "endpoint")
    addresses = {key: str(address) for key in keys if (address := settings.get(key))}
    for name, address in addresses.items():
        text = text.replace(address, name)
    for name, address in addresses.items():
        # Errors of the connection name the host alone.
        host = re.escape(_host(address))
        text = re.sub(rf"(?<![\w.-]){host}(?![\w-])", name, text, flags=re.IGNORECASE)
    return text


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or address
    except ValueError:  # no URL
        return address


def written(writer: Writer, config: RunConfig) -> dict[str, Scalar]:
    """Return what the language model that writes prompts has used."""
    used = writer.usage
    return {
        GENERATOR_REQUESTS_KEY: writer.requests,
        GENERATOR_FALLBACKS_KEY: writer.fallbacks,
        GENERATOR_PROMPT_TOKENS_KEY: used.prompt_tokens,
        GENERATOR_COMPLETION_TOKENS_KEY: used.completion_tokens,
        GENERATOR_COST_KEY: models.prices(models.generator_settings(config)).cost(used),
    }


def unchanged(limit: str) -> dict[str, Scalar]:
    """Return what else the server is told of a search that a limit of the run forbids."""
    return {GAIN_KEY: 0.0, "trials": 0, "accepted": "[]", USED_UP_KEY: limit}


def mismatch(told: Mapping[str, Scalar], config: RunConfig) -> str:
    """Return why nothing that this node finds could be shared with the server; empty if it could.

    Parameters
    ----------
    told : Mapping[str, Scalar]
        The message's configuration.
    config : RunConfig
        Settings of the run on this node.
    """
    ours = models.masked_lm(config, load_task(config)).vocabulary.fingerprint
    if (theirs := str(told.get(VOCABULARY_KEY, ours))) != ours:
        return (
            f"masked-lm: this node's vocabulary {ours} is not the server's, {theirs}; all nodes "
            "need the same masked-lm"
        )
    if (version := str(told.get(VERSION_KEY, __version__))) != __version__:
        return (
            f"this node runs feddtpt-flwr {__version__}, the server {version}; both need the "
            "same version"
        )
    return ""


def refusal(name: str, told: Mapping[str, Scalar], reason: str) -> dict[str, Scalar]:
    """Return what the server is told by a node that has asked nothing; log it."""
    log(ERROR, "client %s: %s", name, reason)
    return {
        CLIENT_KEY: name,
        ROUND_KEY: int(told[ROUND_KEY]),
        QUERIES_KEY: 0,
        FAILURE_KEY: reason,
    }


def described(trials: Sequence[Trial], vocabulary: Vocabulary) -> str:
    """Return changes as JSON, tokens as text."""
    return json.dumps(
        [
            {
                "position": trial.position,
                "operator": trial.operator,
                "before": vocabulary.decode(trial.before),
                "after": vocabulary.decode(trial.after),
                "accuracy": trial.accuracy,
            }
            for trial in trials
        ]
    )
