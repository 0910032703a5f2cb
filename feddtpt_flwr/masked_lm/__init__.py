"""Masked language models, which propose tokens and judge how prompts read."""

from feddtpt_flwr.masked_lm.base import Fillings, Gap, MaskedLM, TokenEmbedder

__all__ = ["Fillings", "Gap", "MaskedLM", "TokenEmbedder"]
