"""The black box: a prompt and inputs go in, text comes out, and nothing else."""

from feddtpt_flwr.language_model.base import (
    FatalModelError,
    IncrementalLanguageModel,
    LanguageModel,
    ModelError,
    ModelUnavailableError,
)

__all__ = [
    "FatalModelError",
    "IncrementalLanguageModel",
    "LanguageModel",
    "ModelError",
    "ModelUnavailableError",
]
