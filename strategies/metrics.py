"""What a round tells Flower's own metric records."""

from collections.abc import Sequence

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy.strategy_utils import (
    aggregate_metricrecords,
    validate_message_reply_consistency,
)

from strategies.rounds import RoundResult
from strategies.wire import (
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FROM_ARCHIVE_KEY,
    GENERATOR_KEYS,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    UNPARSED_KEY,
)

SUMMED = (
    QUERIES_KEY,
    FROM_ARCHIVE_KEY,
    UNPARSED_KEY,
    PROMPT_TOKENS_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    *GENERATOR_KEYS,
)
"""What clients count: a mean of these over the clients would say nothing."""


def round_metrics(result: RoundResult) -> dict[str, int | float]:
    """Return the numbers of a settled round.

    Returns
    -------
    dict
        ``bytes`` and ``failures`` as in `RoundResult`; ``chosen``, the index of the new global
        prompt among the candidates; and ``candidate-0-accuracy``, ``candidate-1-accuracy``, … in
        [0, 1], the incumbent's first, for those that the clients have scored.
    """
    metrics: dict[str, int | float] = {
        "bytes": result.num_bytes,
        "failures": result.failures,
        "chosen": [c.tokens for c in result.candidates].index(result.chosen.tokens),
    }
    for index, candidate in enumerate(result.candidates):
        score = result.scores.get(candidate.tokens)
        if score and score.total:
            metrics[f"candidate-{index}-accuracy"] = score.accuracy
    return metrics


def check_alike(contents: list[RecordDict], weighted_by_key: str) -> None:
    """Check that the nodes' MetricRecords can be averaged.

    Raises
    ------
    InconsistentMessageReplies
        If they differ in their keys, lack ``weighted_by_key``, or hold a value that is a number for
        one node and a list for another, or a list of another length. Flower itself does not look at
        the last.
    """
    validate_message_reply_consistency(contents, weighted_by_key, check_arrayrecord=False)
    records = [record for content in contents for record in content.metric_records.values()]
    if len({frozenset(record) for record in records}) > 1:
        # Flower looks up the first node's record by name, whatever that is in the others.
        raise InconsistentMessageReplies(reason="The MetricRecords have different keys.")
    for key in records[0]:
        if len({_length(record[key]) for record in records}) > 1:
            raise InconsistentMessageReplies(
                reason=f"{key!r} is not a number, or a list of one length, in all replies."
            )


def _length(value: int | float | list[int] | list[float]) -> int | None:
    return len(value) if isinstance(value, list) else None


def means_and_totals(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Aggregate the nodes' MetricRecords: weighted means as Flower's, but totals of `SUMMED`."""
    metrics = aggregate_metricrecords(contents, weighted_by_key)
    for key in SUMMED:
        if key in metrics:
            metrics[key] = sum(_numbers(contents, key))
    return metrics


def _numbers(contents: Sequence[RecordDict], key: str) -> list[float]:
    values = [r[key] for c in contents for r in c.metric_records.values() if key in r]
    return [value for value in values if isinstance(value, (int, float))]
