"""How a server is asked to answer with one of the choices and nothing else.

Servers differ in what they support, and most ignore what they do not know without a word. Hence
`PROBE`: a question to which nobody who is free to say anything answers with one of its choices.
"""

import json
from collections.abc import Sequence
from typing import Any, Literal

Constraint = Literal["json-schema", "grammar", "choice", "none"]
Constrain = Literal["auto", "json-schema", "grammar", "choice", "none"]

PREFERENCE: tuple[Constraint, ...] = ("choice", "grammar", "json-schema", "none")
"""The order in which ``"auto"`` tries: an answer without JSON around it is the shorter one."""

PROBE = "Reply with the word hello."
PROBE_CHOICES = ("zebra", "quartz")

JSON_TOKENS = 32
"""Tokens that the JSON around an answer may take besides the answer."""


def constraint_fields(kind: Constraint, choices: Sequence[str], *, chat: bool) -> dict[str, Any]:
    """Return the fields of a request that confine its answer to ``choices``.

    Parameters
    ----------
    kind : {"json-schema", "grammar", "choice", "none"}
        ``"choice"`` is vLLM's, ``"grammar"`` llama.cpp's, ``"json-schema"`` OpenAI's and many
        others'.
    choices : Sequence[str]
        The answers; empty for free text.
    chat : bool
        Whether the answer is a message of its own; if not, it continues the query after a space.
    """
    if not choices or kind == "none":
        return {}
    if kind == "json-schema":
        schema = {
            "type": "object",
            "properties": {"answer": {"type": "string", "enum": list(choices)}},
            "required": ["answer"],
            "additionalProperties": False,
        }
        form = {"name": "answer", "strict": True, "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": form}}
    continuations = list(choices) if chat else [f" {choice}" for choice in choices]
    if kind == "grammar":
        # GBNF writes strings as JSON does.
        rule = " | ".join(json.dumps(text, ensure_ascii=False) for text in continuations)
        return {"grammar": f"root ::= {rule}"}
    # vLLM renamed its field in 0.12; every version ignores the other one.
    return {"structured_outputs": {"choice": continuations}, "guided_choice": continuations}
