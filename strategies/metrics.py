"""What a round tells Flower's own metric records."""

from collections.abc import Callable, Sequence
from logging import ERROR, INFO, WARNING
from typing import Any, TypeVar

from flwr.app import MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from strategies.rounds import RoundResult
from strategies.wire import SUMMED_KEYS, short_line

Result = TypeVar("Result")

MetricsAggrFn = Callable[[list[RecordDict], str], MetricRecord]


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


def aggregated(
    contents: Sequence[RecordDict],
    weighted_by_key: str,
    aggregate: MetricsAggrFn,
    failed: Sequence[RecordDict] = (),
) -> MetricRecord | None:
    """Aggregate what all nodes report alike; None if there is nothing.

    Parameters
    ----------
    contents : Sequence[RecordDict]
        Replies that are averaged.
    weighted_by_key : str
        The metric by which replies are weighted.
    aggregate : Callable[[list[RecordDict], str], MetricRecord]
        `means_and_totals` or Flower's, which are given what all replies have alike, or a function
        of the user's own, which is given them as they are: what it raises is logged.
    failed : Sequence[RecordDict]
        Replies of nodes that only tell what they spent.
    """
    weighted: list[RecordDict] = []
    strange: list[RecordDict] = []
    for content in contents:
        (weighted if _has_weight(content, weighted_by_key) else strange).append(content)
    if strange:
        log(
            WARNING,
            "the metrics of %d of %d nodes are left out: one MetricRecord with a number %r is "
            "needed",
            len(strange),
            len(contents),
            weighted_by_key,
        )
    metrics = None
    if weighted:
        if aggregate not in (means_and_totals, aggregate_metricrecords):
            return of_own_function(aggregate, weighted, weighted_by_key)
        alike, left_out = in_common(weighted)
        if left_out:
            names = short_line(", ".join(sorted(left_out)))
            log(INFO, "metrics that not all nodes report alike are left out: %s", names)
        metrics = aggregate(alike, weighted_by_key)
    if aggregate is means_and_totals:  # somebody else's may mean something else by these
        metrics = _plus(metrics, [*failed, *strange])
    return metrics


def of_own_function(function: Callable[..., Result], *values: Any) -> Result | None:
    """Return what a function for metrics of the user's own returns; None if it fails.

    A metric that one client lacks is no reason to lose what all have paid for.
    """
    try:
        return function(*values)
    except Exception:  # whatever it may be
        log(ERROR, "the round has no metrics: their function failed", exc_info=True)
        return None


def in_common(contents: Sequence[RecordDict]) -> tuple[list[RecordDict], list[str]]:
    """Return the nodes' replies with the metrics that all of them have, and what is left out.

    Flower averages records with the same keys only. Nodes may differ: one that asks a service
    counts tokens, one with a model of its own does not, and has none of `SUMMED_KEYS` to add.

    Parameters
    ----------
    contents : Sequence[RecordDict]
        Each with one MetricRecord.

    Returns
    -------
    replies : list[RecordDict]
        Each with a MetricRecord of the same keys, in the same order.
    left_out : list[str]
        Metrics that some nodes lack, or that are a number for one and a list for another, or a list
        of another length.
    """
    named = [next(iter(content.metric_records.items())) for content in contents]
    keys = list(dict.fromkeys(key for _, record in named for key in record))
    none = {key: 0 for key in keys if key in SUMMED_KEYS}
    filled = [{**none, **record} for _, record in named]
    common = [k for k in keys if len({_shape(record.get(k)) for record in filled}) == 1]
    replies = [
        RecordDict({**content, name: MetricRecord({key: record[key] for key in common})})
        for content, (name, _), record in zip(contents, named, filled, strict=True)
    ]
    return replies, [key for key in keys if key not in common]


def _has_weight(content: RecordDict, weighted_by_key: str) -> bool:
    records = list(content.metric_records.values())
    return len(records) == 1 and isinstance(records[0].get(weighted_by_key), (int, float))


def _plus(metrics: MetricRecord | None, contents: Sequence[RecordDict]) -> MetricRecord | None:
    """Add what further nodes have spent."""
    spent = {key: sum(numbers) for key in SUMMED_KEYS if (numbers := _numbers(contents, key))}
    if not spent:
        return metrics
    counted: MetricRecord = metrics or MetricRecord()
    for key, value in spent.items():
        so_far = counted.get(key, 0)
        counted[key] = value + (so_far if isinstance(so_far, (int, float)) else 0)
    return counted


def _shape(value: int | float | list[int] | list[float] | None) -> int | str:
    if value is None:
        return "missing"
    return len(value) if isinstance(value, list) else "number"


def means_and_totals(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Aggregate the nodes' MetricRecords: weighted means as Flower's, totals of `SUMMED_KEYS`."""
    metrics = aggregate_metricrecords(contents, weighted_by_key)
    for key in SUMMED_KEYS:
        if key in metrics:
            metrics[key] = sum(_numbers(contents, key))
    return metrics


def _numbers(contents: Sequence[RecordDict], key: str) -> list[float]:
    values = [r[key] for c in contents for r in c.metric_records.values() if key in r]
    return [value for value in values if isinstance(value, (int, float))]
