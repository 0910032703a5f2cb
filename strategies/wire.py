"""Reading what clients sent: nothing that comes over the network is believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.common import Parameters, Scalar, parameters_to_ndarrays
from numpy.typing import NDArray

from strategies.candidates import LocalPrompt, Score, Tokens

VOCABULARY_KEY = "vocabulary"
ROUND_KEY = "server-round"
GAIN_KEY = "gain"
QUERIES_KEY = "queries"
SCORED_KEY = "num-scored"
CLIENT_KEY = "client"
UNPARSED_KEY = "unparsed"
PROMPT_TOKENS_KEY = "prompt-tokens"
COMPLETION_TOKENS_KEY = "completion-tokens"
COST_KEY = "cost"
FAILURE_KEY = "failure"


class UploadError(ValueError):
    """What a client sent is malformed; the message says how."""


def correct_key(index: int) -> str:
    """Return the metric's name for the correct answers of candidate ``index``."""
    return f"correct-{index}"


def payload_bytes(parameters: Parameters, scalars: Mapping[str, Scalar]) -> int:
    """Return the size of a message's content in bytes: arrays as they travel, keys, values."""
    size = sum(len(tensor) for tensor in parameters.tensors)
    for key, value in scalars.items():
        size += len(key.encode())
        if isinstance(value, str):
            size += len(value.encode())
        else:
            size += len(value) if isinstance(value, bytes) else 8
    return size


def failure(metrics: Mapping[str, Scalar]) -> str:
    """Return what a client says went wrong, in one short line; empty if nothing did."""
    return " ".join(str(metrics.get(FAILURE_KEY, "")).split())[:300]


def read_prompt(array: NDArray[Any], *, vocabulary_size: int, max_tokens: int) -> Tokens:
    """Return the token ids of a prompt from the wire.

    Parameters
    ----------
    array
        Should be of shape ``(N,)`` and an integer type, ``1 <= N <= max_tokens``.
    vocabulary_size
        Ids must lie in ``[0, vocabulary_size)``.
    max_tokens
        Longest prompt allowed.

    Raises
    ------
    UploadError
        If it is anything else.
    """
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise UploadError(
            "a prompt is a one-dimensional integer array, "
            f"got shape {array.shape} and dtype {array.dtype}"
        )
    if not 1 <= len(array) <= max_tokens:
        raise UploadError(f"a prompt has 1 to {max_tokens} tokens, got {len(array)}")
    if array.min() < 0 or array.max() >= vocabulary_size:
        raise UploadError(
            f"token ids must lie in [0, {vocabulary_size}), got {array.min()} to {array.max()}"
        )
    return tuple(int(token) for token in array)


def read_upload(
    parameters: Parameters,
    metrics: Mapping[str, Scalar],
    *,
    client: str,
    vocabulary: str,
    vocabulary_size: int,
    max_tokens: int,
) -> LocalPrompt:
    """Return the local prompt that a client uploaded.

    Raises
    ------
    UploadError
        If the arrays are no prompt, the gain is no finite number in [-1, 1], or the client's
        vocabulary is another one.
    """
    try:
        arrays = parameters_to_ndarrays(parameters)
    except Exception as error:
        raise UploadError(f"unreadable arrays: {error}") from error
    # What numpy reads from a zip file is no array but an archive of arrays.
    if not all(isinstance(array, np.ndarray) for array in arrays):
        raise UploadError("unreadable arrays: an archive")
    if len(arrays) != 1:
        raise UploadError(f"an upload is one array, got {len(arrays)}")
    theirs = metrics.get(VOCABULARY_KEY, vocabulary)
    if theirs != vocabulary:
        raise UploadError(
            f"the client's vocabulary {theirs!r} is not the server's {vocabulary!r}: "
            "all nodes need the same masked-lm"
        )
    tokens = read_prompt(arrays[0], vocabulary_size=vocabulary_size, max_tokens=max_tokens)
    gain = metrics.get(GAIN_KEY, 0.0)
    if not isinstance(gain, (int, float)) or not -1 <= gain <= 1:
        raise UploadError(f"{GAIN_KEY} must be a number in [-1, 1], got {gain!r}")
    return LocalPrompt(client, tokens, float(gain))


def read_scores(metrics: Mapping[str, Scalar], candidates: Sequence[Tokens]) -> dict[Tokens, Score]:
    """Return one client's counts for every candidate.

    Raises
    ------
    UploadError
        If the number of examples is no positive integer, or a count is missing, no integer, or
        larger than that number.
    """
    total = metrics.get(SCORED_KEY)
    if not isinstance(total, int) or total < 1:
        raise UploadError(f"{SCORED_KEY} must be a positive count, got {total!r}")
    scores: dict[Tokens, Score] = {}
    for index, tokens in enumerate(candidates):
        correct = metrics.get(correct_key(index))
        if not isinstance(correct, int) or not 0 <= correct <= total:
            raise UploadError(
                f"{correct_key(index)} must be a count in [0, {total}], got {correct!r}"
            )
        scores[tokens] = Score(correct, total)
    return scores
