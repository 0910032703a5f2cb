"""FedPIT's server for Flower's message API: a weighted average of adapters, and of nothing else."""

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords, sample_nodes

from strategies.adapters import Adapter, WireDtype, num_bytes, read_upload, to_record
from strategies.metrics import MetricsAggrFn, aggregated
from strategies.sampling import draw_evaluating
from strategies.wire import MOST_EXAMPLES, short_line

PROXIMAL_MU_KEY = "proximal-mu"


@dataclass(frozen=True)
class PhaseReport:
    """What came back from the nodes in one half of a round.

    Attributes
    ----------
    server_round : int
        From 1.
    phase : {"train", "evaluate"}
        Which half.
    replies : tuple[tuple[int, RecordDict], ...]
        Node id and content of every usable reply; adapters in float32.
    rejected : tuple[str, ...]
        Why each of the other replies is not used.
    failures : int
        Nodes that were asked and sent an error or nothing.
    num_bytes : int
        Adapters sent and received, as they travelled.
    errors : tuple[str, ...]
        What the nodes that sent an error said.
    """

    server_round: int
    phase: Literal["train", "evaluate"]
    replies: tuple[tuple[int, RecordDict], ...]
    rejected: tuple[str, ...]
    failures: int
    num_bytes: int
    errors: tuple[str, ...] = ()


class FedPIT(FedAvg):
    """Federated instruction tuning with parameter-isolated training.

    Implementation based on https://arxiv.org/abs/2403.06131. All that is FedPIT's own happens on
    the clients, before they upload. The server averages adapters as `FedAvg` does, weighted by the
    number of private examples. It differs from `FedAvg` in three things: adapters can travel in
    bfloat16, while the global one is kept in float32; a malformed upload (other names, shapes or
    types, numbers that are not finite, metrics that are not numbers, more examples than a node can
    have) is left out and counted, and the round goes on; and what happened in a round is reported.

    Parameters
    ----------
    wire_dtype : {"bfloat16", "float32"} (default: "bfloat16")
        How adapters travel, in both directions.
    proximal_mu : float (default: 0.0)
        Weight of FedProx's proximal term, which the clients add to their loss; 0 is none.
    most_examples : float (default: 2**53 - 1)
        Most examples that a node can have. By its examples it is weighted, and how many it has is
        its own word: who claims more is left out.
    on_phase : Optional[Callable[[PhaseReport], None]] (default: None)
        Called when the replies of a half round have been read. What it raises ends the run.
    on_average : Optional[Callable[[int, ArrayRecord], None]] (default: None)
        Called with the round's number and the new global adapter as soon as there is one.
    fraction_train : float (default: 1.0)
        Fraction of nodes that train in a round.
    fraction_evaluate : float (default: 1.0)
        Fraction of nodes that evaluate the global adapter.
    min_train_nodes : int (default: 2)
        As in `FedAvg`; and with fewer usable uploads the global adapter stays.
    min_evaluate_nodes : int (default: 2)
        As in `FedAvg`.
    min_available_nodes : int (default: 2)
        Minimum number of total nodes in the system for a training to begin. It is not waited for
        a node that leaves before the evaluation: the others have trained.
    weighted_by_key : str (default: "num-examples")
        The key within each MetricRecord whose value is the node's weight.
    arrayrecord_key : str (default: "arrays")
        Key used to store the ArrayRecord when constructing Messages.
    configrecord_key : str (default: "config")
        Key used to store the ConfigRecord when constructing Messages.
    train_metrics_aggr_fn : Optional[callable] (default: None)
        Function with signature (list[RecordDict], str) -> MetricRecord, used to aggregate the
        MetricRecords of usable uploads, which it is given as they are. If it raises an error, that
        is logged and costs the metrics, not the round. If `None`, a weighted average of what all
        have.
    evaluate_metrics_aggr_fn : Optional[callable] (default: None)
        The same for evaluation.

    Raises
    ------
    ValueError
        If ``wire_dtype``, ``proximal_mu`` or ``most_examples`` is not allowed.
    """

    def __init__(
        self,
        *,
        wire_dtype: WireDtype = "bfloat16",
        proximal_mu: float = 0.0,
        most_examples: float = MOST_EXAMPLES - 1,
        on_phase: Callable[[PhaseReport], None] | None = None,
        on_average: Callable[[int, ArrayRecord], None] | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggrFn | None = None,
        evaluate_metrics_aggr_fn: MetricsAggrFn | None = None,
    ) -> None:
        if wire_dtype not in ("bfloat16", "float32"):
            raise ValueError(f"wire_dtype is {wire_dtype!r}: 'bfloat16' or 'float32' is allowed")
        if not (math.isfinite(proximal_mu) and proximal_mu >= 0):
            raise ValueError(f"proximal_mu is {proximal_mu}: 0 or a number above is needed")
        if not 0 < most_examples < MOST_EXAMPLES:
            raise ValueError(f"most_examples is {most_examples}: a number in (0, 2**53) is needed")
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        self.wire_dtype: WireDtype = wire_dtype
        self.proximal_mu = proximal_mu
        self.most_examples = most_examples
        self._on_phase = on_phase
        self._on_average = on_average
        self._global: Adapter = {}
        self._asked = 0
        self._bytes = 0

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log(INFO, "\t├──> FedPIT settings:")
        log(INFO, "\t│\t├── Adapters travel in: %s", self.wire_dtype)
        log(INFO, "\t│\t└── Proximal mu: %s", self.proximal_mu)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter to the nodes that train in this round."""
        self._global = {name: array.numpy() for name, array in arrays.items()}
        config[PROXIMAL_MU_KEY] = self.proximal_mu
        if self.fraction_train:
            # Flower draws as many as were connected before it waited, not as many as are then.
            sample_nodes(grid, self.min_available_nodes, 0)
        sent = to_record(self._global, self.wire_dtype)
        return self._sent(super().configure_train(server_round, sent, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the usable adapters; None if there are too few of them."""
        usable = self._usable(server_round, replies, "train")
        if len(usable) < max(1, self.min_train_nodes):
            log(
                WARNING,
                "round %d: %d usable uploads, the global adapter stays",
                server_round,
                len(usable),
            )
            return None, None
        metrics = aggregated(usable, self.weighted_by_key, self.train_metrics_aggr_fn)
        arrays = aggregate_arrayrecords(usable, self.weighted_by_key)
        if self._on_average:
            self._on_average(server_round, arrays)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global adapter to the nodes that evaluate it."""
        if self.fraction_evaluate == 0:
            return []
        nodes = draw_evaluating(grid, self.fraction_evaluate, self.min_evaluate_nodes)
        config["server-round"] = server_round
        adapter = {name: array.numpy() for name, array in arrays.items()}
        sent = to_record(adapter, self.wire_dtype)
        record = RecordDict({self.arrayrecord_key: sent, self.configrecord_key: config})
        return self._sent(self._construct_messages(record, nodes, MessageType.EVALUATE))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the usable metrics."""
        usable = self._usable(server_round, replies, "evaluate")
        return aggregated(usable, self.weighted_by_key, self.evaluate_metrics_aggr_fn)

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        self._asked = len(messages)
        self._bytes = sum(_adapter_bytes(message.content) for message in messages)
        return messages

    def _usable(
        self, server_round: int, replies: Iterable[Message], phase: Literal["train", "evaluate"]
    ) -> list[RecordDict]:
        is_train = phase == "train"
        answered, failed = self._check_and_log_replies(replies, is_train=is_train, validate=False)
        usable: list[tuple[int, RecordDict]] = []
        rejected: list[str] = []
        for message in answered:
            node = message.metadata.src_node_id
            self._bytes += _adapter_bytes(message.content)
            try:
                usable.append((node, self._read(message.content, is_train)))
            # NumPy raises all kinds of errors when bytes are not the array they should be.
            except Exception as error:
                log(WARNING, "round %d: node %d's reply is rejected: %s", server_round, node, error)
                rejected.append(str(error))
        # The average must depend neither on who answers first nor on the numbers that Flower gives
        # the nodes of a run, not even in its last bit.
        usable.sort(key=lambda reply: _fingerprint(reply[1]))
        if self._on_phase:
            self._on_phase(
                PhaseReport(
                    server_round,
                    phase,
                    tuple(usable),
                    tuple(rejected),
                    max(self._asked - len(answered), 0),
                    self._bytes,
                    tuple(_said(message.error.reason) for message in failed),
                )
            )
        return [content for _, content in usable]

    def _read(self, content: RecordDict, is_train: bool) -> RecordDict:
        """Return a reply with its adapter in float32.

        Raises
        ------
        Exception
            If the reply is not what it has to be, or its bytes are no arrays.
        """
        if len(content.metric_records) != 1:
            raise ValueError(f"{len(content.metric_records)} MetricRecords, one is needed")
        (metrics,) = content.metric_records.values()
        for key, value in metrics.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"metric {key!r} is no finite number")
        weight = metrics.get(self.weighted_by_key)
        if not isinstance(weight, (int, float)) or not 0 < weight <= self.most_examples:
            raise ValueError(
                f"{self.weighted_by_key!r} is {weight!r}, a number above 0 and at most "
                f"{self.most_examples:.17g} is needed"
            )
        checked = RecordDict()
        checked.config_records.update(content.config_records)
        # Under names of ours: a node's could be that of another record.
        checked["metrics"] = metrics
        if not is_train:
            return checked
        if len(content.array_records) != 1:
            raise ValueError(f"{len(content.array_records)} ArrayRecords, one is needed")
        (arrays,) = content.array_records.values()
        adapter = read_upload(arrays, self.wire_dtype, self._global)
        checked[self.arrayrecord_key] = to_record(adapter, "float32")
        return checked


def _fingerprint(content: RecordDict) -> bytes:
    """Return a hash of what a node sent: its adapter and its metrics."""
    digest = hashlib.blake2b()
    for metrics in content.metric_records.values():
        digest.update(repr(sorted(metrics.items())).encode())
    for record in content.array_records.values():
        for name in sorted(record):
            digest.update(record[name].data)
    return digest.digest()


def _said(reason: str | None) -> str:
    """Return what a node's error says, without the tracebacks that Flower and Ray put before it."""
    return short_line((reason or "").rpartition("Message: ")[2].removesuffix("'>"))


def _adapter_bytes(content: RecordDict) -> int:
    return sum(num_bytes(record) for record in content.array_records.values())
