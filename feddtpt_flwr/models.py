"""The models that a configuration names, each built once per process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from feddtpt_flwr.assets import EMBEDDED, AssetError
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Task
from feddtpt_flwr.language_model import LanguageModel
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.weights import resolve_device
from feddtpt_flwr.masked_lm import (
    CausalInfiller,
    EncoderEmbedder,
    HuggingFaceMaskedLM,
    MaskedLM,
    TokenEmbedder,
)
from feddtpt_flwr.proposer import MaskedLMProposer, Proposer
from feddtpt_flwr.remote_masked_lm import RemoteMaskedLM


def language_model(config: RunConfig) -> LanguageModel:
    """Return the black box.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    device = _device(config)
    with _named("language-model", config.language_model):
        return _language_model(config.language_model, config.chat, device, config.dtype)


def masked_lm(config: RunConfig, task: Task) -> MaskedLM:
    """Return the model that proposes tokens.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    excluded = task.answers if config.exclude_answer_words else ()
    if config.masked_lm_endpoint:
        return _remote_masked_lm(
            config.masked_lm_endpoint, config.masked_lm, config.masked_lm_key_env, excluded
        )
    device = _device(config)
    with _named("masked-lm", config.masked_lm):
        return _masked_lm(config.masked_lm, excluded, device, config.dtype)


def token_embedder(config: RunConfig, task: Task) -> TokenEmbedder:
    """Return the model that embeds tokens on the server."""
    model = masked_lm(config, task)
    if isinstance(model, HuggingFaceMaskedLM):
        return model
    return EncoderEmbedder(model.vocabulary)


def proposer(config: RunConfig, task: Task) -> Proposer:
    """Return what proposes the client's changes."""
    model = masked_lm(config, task)
    return MaskedLMProposer(
        model, max_tokens=config.max_prompt_tokens, use_feedback=config.feedback
    )


def _device(config: RunConfig) -> str:
    try:
        return resolve_device(config.device)
    except ValueError as error:
        raise ConfigError(str(error)) from None


@contextmanager
def _named(key: str, value: str) -> Iterator[None]:
    """Say which setting a model that cannot be loaded comes from."""
    try:
        yield
    except AssetError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key} = {value!r}: no model can be loaded from this; allowed are 'embedded', a name "
            f"on the Hugging Face hub, a folder with a model, or a .gguf file ({error})"
        ) from error


@cache
def _language_model(model: str, chat: bool, device: str, dtype: str) -> LanguageModel:
    return LocalLanguageModel(model, chat=chat, device=device, dtype=dtype)


@cache
def _remote_masked_lm(
    endpoint: str, tokenizer: str, key_env: str, excluded: tuple[str, ...]
) -> MaskedLM:
    try:
        return RemoteMaskedLM(endpoint, tokenizer, key_env=key_env, excluded_words=excluded)
    except ValueError as error:
        raise ConfigError(f"masked-lm = {tokenizer!r}: {error}") from None


@cache
def _masked_lm(model: str, excluded: tuple[str, ...], device: str, dtype: str) -> MaskedLM:
    if model == EMBEDDED:
        return CausalInfiller(model, excluded_words=excluded, device=device, dtype=dtype)
    return HuggingFaceMaskedLM(model, excluded_words=excluded, device=device)
