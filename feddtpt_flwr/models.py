"""The models that a configuration names, each built once per process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from feddtpt_flwr.amounts import CHAT_TOKENS, PLAIN_TOKENS, Tariff
from feddtpt_flwr.answer_store import AnswerStore
from feddtpt_flwr.assets import EMBEDDED, AssetError, cache_folder
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Task
from feddtpt_flwr.encoder import EncoderEmbedder
from feddtpt_flwr.keys import read_key
from feddtpt_flwr.language_model import LanguageModel
from feddtpt_flwr.language_model.api import ApiLanguageModel
from feddtpt_flwr.language_model.constraints import JSON_TOKENS, PREFERENCE
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.language_model.remembering import RememberingLanguageModel
from feddtpt_flwr.language_model.usage import Prices
from feddtpt_flwr.language_model.weights import CacheError, is_causal, resolve_device
from feddtpt_flwr.masked_lm import MaskedLM, TokenEmbedder
from feddtpt_flwr.masked_lm.bert import HuggingFaceMaskedLM
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.masked_lm.remote import RemoteMaskedLM

WRITTEN_TOKENS = 256
"""Longest answer of a model behind an endpoint that writes prompts: several of usual length."""


def language_model(config: RunConfig) -> LanguageModel:
    """Return the black box.

    Raises
    ------
    ConfigError
        If there is no such model, or its key cannot be sent.
    """
    if config.endpoint:
        return _api_language_model(config, read_key(config.api_key_env), "answers")
    device = _device(config)
    with _named("language-model", config.language_model):
        return _language_model(config.language_model, config.chat, device, config.dtype)


def writing_model(config: RunConfig) -> LanguageModel:
    """Return the model that writes prompts; at the black box's endpoint it counts for itself.

    Raises
    ------
    ConfigError
        As `language_model`.
    """
    settings = generator_settings(config)
    if settings.endpoint:
        return _api_language_model(settings, read_key(settings.api_key_env), "writes")
    return language_model(settings)


def black_box(config: RunConfig) -> str:
    """Return what others are told of the black box: its name, neither where it runs nor lies."""
    path = Path(config.language_model)
    local = not config.endpoint and path.exists()
    return path.name if local else config.language_model


def ready_language_model(config: RunConfig) -> LanguageModel:
    """Return the black box after one line to its endpoint, if it has one, was answered.

    Raises
    ------
    ConfigError
        If there is no such model.
    ModelError
        If the endpoint does not answer, refuses the key, or does not know the model.
    """
    return _ready(language_model(config))


def ready_writing_model(config: RunConfig) -> LanguageModel:
    """Return the model that writes prompts, as `ready_language_model` does the black box."""
    return _ready(writing_model(config))


def _ready(model: LanguageModel) -> LanguageModel:
    if isinstance(model, ApiLanguageModel):
        model.prepare()
    return model


def answer_store(config: RunConfig) -> AnswerStore | None:
    """Return where what endpoints write is kept on disk, or None if it is not."""
    # Answers that were drawn at random are not repeated as if they were the only ones.
    remote = config.endpoint or config.generator_endpoint
    if not remote or not config.cache_size_mib or config.temperature > 0:
        return None
    return _answer_store(config.cache_size_mib)


def prices(config: RunConfig) -> Prices:
    """Return what tokens cost."""
    return Prices(config.price_per_million_input, config.price_per_million_output)


def generator_settings(config: RunConfig) -> RunConfig:
    """Return the settings with the model that writes prompts in the place of the black box."""
    if not config.endpoint and not config.generator_endpoint:
        # The embedded model was made for chats.
        return config.model_copy(update={"chat": config.chat or config.language_model == EMBEDDED})
    changes: dict[str, Any] = {
        "constrain": "none",
        "max_answer_tokens": max(config.max_answer_tokens, WRITTEN_TOKENS),
    }
    if config.generator_endpoint:
        changes |= {
            "endpoint": config.generator_endpoint,
            "language_model": config.generator_model,
            "api_key_env": config.generator_key_env,
            "chat": True,
            "system_message": "",
            "extra_body": "",
            "price_per_million_input": config.generator_price_per_million_input,
            "price_per_million_output": config.generator_price_per_million_output,
        }
    return config.model_copy(update=changes)


def tariff(config: RunConfig) -> Tariff:
    """Return what the black box costs."""
    return Tariff(
        prices(config),
        longest_answer=config.max_answer_tokens + JSON_TOKENS,
        around=len(config.system_message.encode()) + (CHAT_TOKENS if config.chat else PLAIN_TOKENS),
        probes=len(PREFERENCE) if config.constrain == "auto" else 1,
        counted=bool(config.endpoint),
    )


def masked_lm(config: RunConfig, task: Task) -> MaskedLM:
    """Return the model that proposes tokens.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    excluded = task.answers if config.exclude_answer_words else ()
    # A task in English needs no other letters, and names with accents would only stand in the way.
    told = (config.seed_prompt or task.seed_prompt, task.template, *task.answers)
    beyond_ascii = not all(text.isascii() for text in told)
    if config.masked_lm_endpoint:
        return _remote_masked_lm(
            config.masked_lm_endpoint,
            config.masked_lm,
            config.masked_lm_key_env,
            excluded,
            beyond_ascii,
            config.timeout,
            config.concurrency,
        )
    device = _device(config)
    with _named("masked-lm", config.masked_lm):
        return _masked_lm(config.masked_lm, excluded, beyond_ascii, device, config.dtype)


def token_embedder(config: RunConfig, task: Task) -> TokenEmbedder:
    """Return the model that embeds tokens on the server."""
    model = masked_lm(config, task)
    if isinstance(model, HuggingFaceMaskedLM):
        return model
    return EncoderEmbedder(model.vocabulary)


def _device(config: RunConfig) -> str:
    try:
        return resolve_device(config.device)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a model is to run in this process, which needs {error.name}, and that is not "
            "installed here; install feddtpt-flwr with all it depends on, or set endpoint and "
            "masked-lm-endpoint to services"
        ) from None


@contextmanager
def _named(key: str, value: str) -> Iterator[None]:
    """Say which setting a model that cannot be loaded comes from."""
    try:
        yield
    except AssetError:
        raise
    except CacheError as error:
        raise ConfigError(f"{key} = {value!r}: {error}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{key} = {value!r}: no model can be loaded from this; allowed are 'embedded', a name "
            f"on the Hugging Face hub, a folder with a model, or a .gguf file ({error})"
        ) from error


@cache
def _api_language_model(
    config: RunConfig, key: str, role: Literal["answers", "writes"]
) -> ApiLanguageModel:
    """Return one client for each ``role``, so that what each has used is known."""
    return ApiLanguageModel(
        config.endpoint,
        config.language_model,
        key=key,
        chat=config.chat,
        system_message=config.system_message,
        temperature=config.temperature,
        # Where nothing is drawn the seed decides nothing, and runs can share their answers.
        seed=config.seed if config.temperature else 0,
        max_answer_tokens=config.max_answer_tokens,
        constrain=config.constrain,
        extra_body=json.loads(config.extra_body or "{}"),
        concurrency=config.concurrency,
        requests_per_minute=config.requests_per_minute,
        tokens_per_minute=config.tokens_per_minute,
        timeout=config.timeout,
    )


@cache
def _answer_store(size_mib: int) -> AnswerStore:
    return AnswerStore(cache_folder() / "answers" / "answers-2.sqlite", size_mib * 2**20)


@cache
def _language_model(model: str, chat: bool, device: str, dtype: str) -> LanguageModel:
    local = LocalLanguageModel(model, chat=chat, device=device, dtype=dtype)
    return RememberingLanguageModel(local)


@cache
def _remote_masked_lm(
    endpoint: str,
    tokenizer: str,
    key_env: str,
    excluded: tuple[str, ...],
    beyond_ascii: bool,
    timeout: float,
    concurrency: int,
) -> MaskedLM:
    try:
        return RemoteMaskedLM(
            endpoint,
            tokenizer,
            key_env=key_env,
            excluded_words=excluded,
            beyond_ascii=beyond_ascii,
            timeout=timeout,
            concurrency=concurrency,
        )
    except ValueError as error:
        raise ConfigError(f"masked-lm = {tokenizer!r}: {error}") from None


@cache
def _masked_lm(
    model: str, excluded: tuple[str, ...], beyond_ascii: bool, device: str, dtype: str
) -> MaskedLM:
    words: dict[str, Any] = {"excluded_words": excluded, "beyond_ascii": beyond_ascii}
    if model == EMBEDDED or is_causal(model):
        return CausalInfiller(model, **words, device=device, dtype=dtype)
    return HuggingFaceMaskedLM(model, **words, device=device)
