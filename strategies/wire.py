"""Reading what clients sent: nothing that comes over the network is believed.

The contract between strategy and client, whichever of Flower's two interfaces carries it:

- *search* (``fit``, ``train``): the client receives one array, the global prompt's token ids, and
  the configuration ``server-round`` and ``vocabulary``; ``race-examples`` says on how many examples
  the candidates will be scored, if that is limited, and ``compared`` that they will be at all: then
  a prompt may be uploaded that is only likely to be better. It answers with one array, its local
  prompt's token ids, and may report ``gain``, ``accuracy``, ``vocabulary`` and ``client``; and, if
  its black box failed, what happened as ``failure``, with what it had found until then or no
  array. A client that may ask nothing more in this run sends the prompt back and says why as
  ``used-up``.
- *score* (``evaluate``): the client receives one array for each candidate and may be told how many
  examples are wanted of it, as ``race-examples``. It answers with ``num-scored``, the number of
  private examples it tried them on, and ``correct-0``, ``correct-1``, …, how many of these each
  candidate answered correctly; or with ``failure`` and no counts. It may name its black box as
  ``model``.

What it reports besides, in either, are finite numbers, lists of them, and texts; what this module
has a name for is a single number where it is averaged or added up. The number of examples, with
which Flower weighs the numbers, is above 0.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strategies.candidates import LocalPrompt, Score, Tokens

VOCABULARY_KEY = "vocabulary"
ROUND_KEY = "server-round"
GAIN_KEY = "gain"
ACCURACY_KEY = "accuracy"
QUERIES_KEY = "queries"
SCORED_KEY = "num-scored"
RACE_EXAMPLES_KEY = "race-examples"
COMPARED_KEY = "compared"  # in the message of a search after which clients compare
CLIENT_KEY = "client"
UNPARSED_KEY = "unparsed"
FROM_ARCHIVE_KEY = "from-archive"
PROMPT_TOKENS_KEY = "prompt-tokens"
COMPLETION_TOKENS_KEY = "completion-tokens"
COST_KEY = "cost"
FAILURE_KEY = "failure"
LIMIT_KEY = "ended-by"
USED_UP_KEY = "used-up"
GENERATOR_REQUESTS_KEY = "generator-requests"
GENERATOR_FALLBACKS_KEY = "generator-fallbacks"
GENERATOR_PROMPT_TOKENS_KEY = "generator-prompt-tokens"
GENERATOR_COMPLETION_TOKENS_KEY = "generator-completion-tokens"
GENERATOR_COST_KEY = "generator-cost"
GENERATOR_KEYS = (
    GENERATOR_REQUESTS_KEY,
    GENERATOR_FALLBACKS_KEY,
    GENERATOR_PROMPT_TOKENS_KEY,
    GENERATOR_COMPLETION_TOKENS_KEY,
    GENERATOR_COST_KEY,
)
MODEL_KEY = "model"

SUMMED_KEYS = (
    QUERIES_KEY,
    FROM_ARCHIVE_KEY,
    UNPARSED_KEY,
    PROMPT_TOKENS_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    *GENERATOR_KEYS,
)
"""What clients count: a mean of these over the clients would say nothing."""

NUMBER_KEYS = (GAIN_KEY, ACCURACY_KEY, *SUMMED_KEYS)
"""What is averaged or added up over clients: one number each."""

LONGEST_NAME = 64
"""Characters of a client's or a black box's name that are kept."""

MOST_EXAMPLES = 2**53
"""A number of examples is below; up to here whole numbers are exact as floats."""

ClientWeights = Literal["equal", "examples", "accuracy"]
"""What a client's tokens count by: all alike, its number of examples, or its local accuracy."""


def examples_each(race_examples: int, num_clients: int) -> int:
    """Return on how many examples each of ``num_clients`` tries a candidate; 0 for all it has.

    Together they try each candidate on ``race_examples``, each on as many and at least one: up to
    so many clients, what it costs to compare a prompt does not grow with them.
    """
    return -(-race_examples // max(num_clients, 1))


class UploadError(ValueError):
    """What a client sent is malformed; the message says how."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What one client answered, before any of it is believed.

    Attributes
    ----------
    sender
        What Flower calls the client.
    tensors
        Its arrays as they travel, each in NumPy's file format.
    metrics
        What else it reported.
    num_examples
        On how many examples, as it says.
    """

    sender: str
    tensors: tuple[bytes, ...]
    metrics: Mapping[str, Any]
    num_examples: Any = 1

    @property
    def client(self) -> str:
        """The name the client gives itself, else Flower's for it."""
        return short_line(self.metrics.get(CLIENT_KEY, self.sender), LONGEST_NAME)

    @property
    def num_bytes(self) -> int:
        """Size of the content, in bytes."""
        return payload_bytes(self.tensors, self.metrics)


def correct_key(index: int) -> str:
    """Return the metric's name for the correct answers of candidate ``index``."""
    return f"correct-{index}"


def payload_bytes(tensors: Sequence[bytes], values: Mapping[str, Any]) -> int:
    """Return the size of a message's content in bytes: arrays as they travel, keys, values."""
    size = sum(len(tensor) for tensor in tensors)
    for key, value in values.items():
        size += len(key.encode())
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                size += len(item.encode())
            else:
                size += len(item) if isinstance(item, bytes) else 8
    return size


def failure(metrics: Mapping[str, Any]) -> str:
    """Return what a client says went wrong, in one short line; empty if nothing did."""
    return short_line(metrics.get(FAILURE_KEY, ""))


def used_up(metrics: Mapping[str, Any]) -> str:
    """Return the limit that a client says it has used up, in one short line; empty if none."""
    return short_line(metrics.get(USED_UP_KEY, ""))


def short_line(value: Any, longest: int = 300) -> str:
    """Return the beginning of a value's text in one line: clients may send anything into a log."""
    text = " ".join(str(value).split())[:longest]
    return "".join(character for character in text if character.isprintable())


def _shown(value: Any) -> str:
    return short_line(repr(value))


def check_numbers(reply: Reply) -> None:
    """Check what a client reports besides its prompt or its counts.

    Everybody's numbers are averaged: a single one that is not finite would spoil the average, and
    weights that add up to 0 end it with an error.

    Raises
    ------
    UploadError
        If a number is not finite, one of `NUMBER_KEYS` is no single number, or the number of
        examples is given but not in (0, 2**53). It may be 0 where a failure is all there is.
    """
    examples = reply.num_examples
    lowest = 0 if failure(reply.metrics) and not reply.tensors else sys.float_info.min
    if examples is not None and not (
        isinstance(examples, (int, float)) and lowest <= examples < MOST_EXAMPLES
    ):
        shown = _shown(examples)
        raise UploadError(f"the number of examples must be a number above 0, got {shown}")
    for key, value in reply.metrics.items():
        items = value if isinstance(value, list) and key not in NUMBER_KEYS else [value]
        numbers = [item for item in items if isinstance(item, (int, float))]
        if not all(map(_finite, numbers)) or (key in NUMBER_KEYS and not numbers):
            raise UploadError(f"{key} must be a number that is finite, got {_shown(value)}")


def _finite(number: float) -> bool:
    # False for NaN as well, and for whole numbers that no float can hold.
    return abs(number) <= sys.float_info.max


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
    # By kind: NumPy also counts spans of time among the integers.
    if array.ndim != 1 or array.dtype.kind not in "iu":
        hint = ""
        if np.issubdtype(array.dtype, np.floating):
            hint = "; mods that clip arrays or add noise to them do not work on token ids"
        raise UploadError(
            "a prompt is a one-dimensional integer array, "
            f"got shape {array.shape} and dtype {array.dtype}{hint}"
        )
    if not 1 <= len(array) <= max_tokens:
        raise UploadError(f"a prompt has 1 to {max_tokens} tokens, got {len(array)}")
    if array.min() < 0 or array.max() >= vocabulary_size:
        raise UploadError(
            f"token ids must lie in [0, {vocabulary_size}), got {array.min()} to {array.max()}"
        )
    return tuple(int(token) for token in array)


def read_upload(
    reply: Reply,
    *,
    vocabulary: str,
    vocabulary_size: int,
    max_tokens: int,
    client_weights: ClientWeights = "equal",
) -> LocalPrompt:
    """Return the local prompt that a client uploaded.

    Raises
    ------
    UploadError
        If the arrays are no prompt, the gain is no finite number in [-1, 1], the client's
        vocabulary is another one, or what it shall be weighed by is missing or out of range.
    """
    if len(reply.tensors) != 1:
        raise UploadError(f"an upload is one array, got {len(reply.tensors)}")
    array = _load(reply.tensors[0])
    theirs = reply.metrics.get(VOCABULARY_KEY, vocabulary)
    if theirs != vocabulary:
        raise UploadError(
            f"the client's vocabulary {_shown(theirs)} is not the server's {vocabulary!r}: "
            "all nodes need the same masked-lm"
        )
    tokens = read_prompt(array, vocabulary_size=vocabulary_size, max_tokens=max_tokens)
    gain = reply.metrics.get(GAIN_KEY, 0.0)
    if not isinstance(gain, (int, float)) or not -1 <= gain <= 1:
        raise UploadError(f"{GAIN_KEY} must be a number in [-1, 1], got {_shown(gain)}")
    weight = _weight(reply, client_weights)
    return LocalPrompt(reply.client, tokens, float(gain), weight, _accuracy(reply))


def read_scores(metrics: Mapping[str, Any], candidates: Sequence[Tokens]) -> dict[Tokens, Score]:
    """Return one client's counts for every candidate.

    Raises
    ------
    UploadError
        If the number of examples is no positive integer, or a count is missing, no integer, or
        larger than that number.
    """
    total = metrics.get(SCORED_KEY)
    if not isinstance(total, int) or total < 1:
        raise UploadError(f"{SCORED_KEY} must be a positive count, got {_shown(total)}")
    scores: dict[Tokens, Score] = {}
    for index, tokens in enumerate(candidates):
        correct = metrics.get(correct_key(index))
        if not isinstance(correct, int) or not 0 <= correct <= total:
            raise UploadError(
                f"{correct_key(index)} must be a count in [0, {total}], got {_shown(correct)}"
            )
        scores[tokens] = Score(correct, total)
    return scores


def _load(tensor: bytes) -> NDArray[Any]:
    try:
        # Pickled objects from the network would run their own code.
        array = np.load(BytesIO(tensor), allow_pickle=False)
    except Exception as error:
        raise UploadError(f"unreadable array: {error}") from error
    # What NumPy reads from a zip file is no array but an archive of arrays.
    if not isinstance(array, np.ndarray):
        raise UploadError("unreadable array: an archive")
    return array


def _weight(reply: Reply, client_weights: ClientWeights) -> float:
    if client_weights == "equal":
        return 1.0
    if client_weights == "examples":
        number = reply.num_examples
        if not isinstance(number, int) or not 1 <= number < MOST_EXAMPLES:
            raise UploadError(
                f"the number of examples must be a positive count, got {_shown(number)}"
            )
        return float(number)
    accuracy = _accuracy(reply)
    if accuracy is None:
        told = reply.metrics.get(ACCURACY_KEY)
        raise UploadError(f"{ACCURACY_KEY} must be a number in [0, 1], got {_shown(told)}")
    return accuracy


def _accuracy(reply: Reply) -> float | None:
    accuracy = reply.metrics.get(ACCURACY_KEY)
    if isinstance(accuracy, (int, float)) and 0 <= accuracy <= 1:
        return float(accuracy)
    return None
