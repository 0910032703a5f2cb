"""Which settings do not fit each other; each mistake in a line that names key, value and remedy."""

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from feddtpt_flwr.assets import EMBEDDED
from feddtpt_flwr.checked_settings import kebab

if TYPE_CHECKING:
    from feddtpt_flwr.config import RunConfig

TRACKERS = ("tensorboard", "mlflow")

LIMITS = (
    "tokens_per_round",
    "cost_per_round",
    "seconds_per_round",
    "queries_per_run",
    "tokens_per_run",
    "cost_per_run",
    "seconds_per_run",
)
"""What a client may use besides ``queries_per_round``; 0 stands for no limit in each."""

REQUEST_FIELDS = (
    *("model", "messages", "prompt", "n", "stream", "stop"),
    *("temperature", "seed", "max_tokens", "max_completion_tokens"),
    *("response_format", "grammar", "structured_outputs", "guided_choice"),
)
"""Fields of a request to an endpoint that are the app's to set."""

_VARIABLE = re.compile(
    r"(?!(hf|gsk|sk|xai|r8)_[A-Za-z0-9]{16})(?!(?=\D*\d)[A-Za-z0-9]{24})[A-Za-z_][A-Za-z0-9_]*"
)
"""The name of an environment variable, and not what keys of well-known services look like."""


def find_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every setting that does not fit the others."""
    return [
        *_data_mistakes(config),
        *_unused_mistakes(config),
        *_key_mistakes(config),
        *_endpoint_mistakes(config),
        *_masked_lm_mistakes(config),
        *_tracker_mistakes(config),
        *_limit_mistakes(config),
        *_generator_mistakes(config),
    ]


def tracker_names(trackers: str) -> list[str]:
    """Return the names in the setting ``trackers``, each once."""
    return list(dict.fromkeys(name.strip() for name in trackers.split(",") if name.strip()))


def _data_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every source of examples that is wanted and not there."""
    mistakes = []
    if config.data_source == "files" and not config.train_file:
        mistakes.append('train-file = "": data-source = "files" needs a file')
    if config.data_source != "files":
        mistakes += [
            f"{kebab(name)} = {file!r}: data-source = {config.data_source!r} would not use it; "
            "'files' does"
            for name in ("train_file", "test_file")
            if (file := getattr(config, name))
        ]
    if config.privacy == "synthetic" and not config.public_per_class:
        mistakes.append(
            "privacy = 'synthetic': public-per-class of 1 or more is needed; the public examples "
            "show the language model what to write"
        )
    if config.privacy == "public-tokens" and config.search == "bdpl":
        mistakes.append(
            "search = 'bdpl': with privacy = 'public-tokens' another search is needed; this one "
            "proposes words of private texts"
        )
    return mistakes


def _unused_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every choice that would decide nothing."""
    mistakes, default = [], type(config).model_fields["epsilon"].default
    if config.privacy != "exponential" and config.epsilon != default:
        mistakes.append(
            f"epsilon = {config.epsilon!r}: privacy = {config.privacy!r} would not keep it; "
            "'exponential' does"
        )
    if config.privacy == "exponential":
        if config.search != "feddtpt":
            mistakes.append(
                f"search = {config.search!r}: privacy = 'exponential' would not use it; "
                "'feddtpt' is allowed"
            )
        if config.proposer != "masked-lm":
            mistakes.append(
                f"proposer = {config.proposer!r}: privacy = 'exponential' would not use it; "
                "'masked-lm' is allowed"
            )
        if config.aggregation == "best":
            mistakes.append(
                "aggregation = 'best': with privacy = 'exponential' no client tells how good its "
                "prompt is; choose another"
            )
    elif config.search == "bdpl":
        if config.proposer != "masked-lm":
            mistakes.append(
                f"proposer = {config.proposer!r}: search = 'bdpl' would not use it; "
                "'masked-lm' is allowed"
            )
        # It has no proposer. Where there is one that neither steers, false says what is the case.
        mistakes += [
            f"{name} = false: search = 'bdpl' would not use it; true is allowed"
            for name in ("feedback", "reword")
            if not getattr(config, name)
        ]
    return mistakes


def _key_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every name of a variable that is none.

    The likely mistake is the key itself: it would be written with the settings, and so it is not
    repeated.
    """
    return [
        f"{kebab(name)}: the name of an environment variable is needed, not a key"
        for name in ("api_key_env", "masked_lm_key_env", "generator_key_env")
        # Without a generator its settings are refused in any case.
        if not (name == "generator_key_env" and config.proposer != "prompt-generator")
        and (value := getattr(config, name))
        and not _VARIABLE.fullmatch(value)
    ]


def _endpoint_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every setting that does not fit the endpoint, or its absence."""
    if not config.endpoint:
        # A local model would not obey these, and so answer another question than the one asked.
        settings = {
            "system-message": config.system_message,
            "temperature": config.temperature,
            "extra-body": config.extra_body,
        }
        return [
            f"{key} = {value!r}: is for a model behind an endpoint, and endpoint is empty"
            for key, value in settings.items()
            if value
        ]
    mistakes = _url_mistakes("endpoint", config.endpoint, "api-key-env")
    if config.language_model == EMBEDDED:
        mistakes.append(
            f"language-model = {EMBEDDED!r}: with an endpoint, the model's name there is needed"
        )
    if config.system_message and not config.chat:
        mistakes.append(
            f"system-message = {config.system_message!r}: needs chat = true, as plain completions "
            "know no messages"
        )
    mistakes += _extra_body_mistakes(config.extra_body)
    if not config.api_key_env:
        mistakes.append("api-key-env = '': the name of an environment variable is needed")
    return mistakes


def _extra_body_mistakes(extra_body: str) -> list[str]:
    """Return a line if this is no JSON object, or has a field that other settings decide."""
    if not extra_body:
        return []
    try:
        fields = json.loads(extra_body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        return [  # without the value: it may hold what was meant to be secret
            'extra-body: a JSON object is needed, such as \'{"reasoning_effort": "low"}\''
        ]
    return [
        f"extra-body: {name!r} is what the app itself sends; only other fields are allowed"
        for name in fields
        if name in REQUEST_FIELDS
    ]


def _masked_lm_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every setting that does not fit the proposer's service."""
    if not config.masked_lm_endpoint:
        return []
    mistakes = _url_mistakes("masked-lm-endpoint", config.masked_lm_endpoint, "masked-lm-key-env")
    if config.masked_lm == EMBEDDED:
        mistakes.append(
            f"masked-lm = {EMBEDDED!r}: with a masked-lm-endpoint, the tokenizer of the model "
            "there is needed: a hub name, a folder or a tokenizer.json"
        )
    return mistakes


def _limit_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every limit that could not be kept."""
    mistakes = []
    for name in LIMITS:
        key, value = kebab(name), getattr(config, name)
        if not value:
            continue
        if config.privacy in ("synthetic", "exponential"):
            # Several searches share a round there; and under differential privacy it would tell
            # something of the private texts when a limit ends one.
            mistakes.append(
                f"{key} = {value!r}: with privacy = {config.privacy!r} only queries-per-round is "
                "kept; 0 is allowed"
            )
        elif not name.startswith(("tokens", "cost")):
            continue
        elif not config.endpoint and not config.generator_endpoint:
            mistakes.append(
                f"{key} = {value!r}: is for a model behind an endpoint, and endpoint is empty; a "
                "model in this process counts no tokens"
            )
        elif name.startswith("cost") and not any(
            getattr(config, f"{prefix}price_per_million_{way}")
            for prefix in ("", "generator_")
            for way in ("input", "output")
        ):
            mistakes.append(
                f"{key} = {value!r}: without price-per-million-input or price-per-million-output "
                "above 0 every answer costs nothing"
            )
    return mistakes


def _generator_mistakes(config: "RunConfig") -> list[str]:
    """Return a line for every setting that does not fit the model that writes prompts."""
    given = [
        # What is meant to name a variable may be the key itself.
        kebab(name) if name.endswith("key_env") else f"{kebab(name)} = {value!r}"
        for name in type(config).model_fields
        if name.startswith("generator_") and (value := getattr(config, name))
    ]
    if config.proposer != "prompt-generator":
        return [f"{key}: is for proposer = 'prompt-generator'" for key in given]
    if not config.generator_endpoint:
        return [f"{key}: needs a generator-endpoint" for key in given]
    mistakes = _url_mistakes("generator-endpoint", config.generator_endpoint, "generator-key-env")
    if not config.generator_model:
        mistakes.append("generator-model = '': the model's name at generator-endpoint is needed")
    return mistakes


def _tracker_mistakes(config: "RunConfig") -> list[str]:
    allowed = f"{', '.join(TRACKERS)} are allowed, with commas between them"
    strange = [name for name in tracker_names(config.trackers) if name not in TRACKERS]
    return [f"trackers = {config.trackers!r}: {allowed}"] if strange else []


def _url_mistakes(key: str, url: str, key_setting: str) -> list[str]:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port above 65535, for instance
        usable = False
    if not usable and "@" in url:  # what stands before it may be a password
        return [
            f"{key}: a URL that begins with http:// or https:// is needed, with scheme, host, port "
            f"and path only; a key belongs into the environment variable that {key_setting} names"
        ]
    if not usable:
        return [
            f"{key} = {url!r}: a URL that begins with http:// or https:// is needed, such as "
            "'http://127.0.0.1:8080/v1'"
        ]
    if "@" in parts.netloc or parts.query or parts.fragment:
        # Whatever is in the URL ends up in logs and result files.
        return [
            f"{key}: of the URL at {parts.hostname}, only scheme, host, port and path are allowed; "
            f"a key belongs into the environment variable that {key_setting} names"
        ]
    return []
