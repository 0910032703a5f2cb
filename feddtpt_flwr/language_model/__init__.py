"""The black box: a prompt and inputs go in, text comes out, and nothing else."""

from feddtpt_flwr.language_model.base import LanguageModel

__all__ = ["LanguageModel"]
