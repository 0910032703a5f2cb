from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from strategies.adapters import Adapter, WireDtype, num_bytes, to_record
from strategies.fedpit import PROXIMAL_MU_KEY, FedPIT, PhaseReport

# Messages carry who sends them; Flower's processes set this when they start.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

START: Adapter = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}


class Nodes:
    """A double of Flower's grid that only knows who is connected."""

    def __init__(self, number: int) -> None:
        self.number = number

    def get_node_ids(self) -> list[int]:
        return list(range(1, self.number + 1))


class Server:
    """A strategy in the middle of a round, as Flower's `Strategy.start` drives it."""

    def __init__(self, wire_dtype: WireDtype = "bfloat16", **options: Any) -> None:
        self.reports: list[PhaseReport] = []
        options = {"min_train_nodes": 1, "min_evaluate_nodes": 1} | options
        self.strategy = FedPIT(wire_dtype=wire_dtype, on_phase=self.reports.append, **options)
        self.sent = list(
            self.strategy.configure_train(
                1, to_record(START, "float32"), ConfigRecord(), cast(Grid, Nodes(4))
            )
        )

    def train(self, *replies: Message) -> tuple[Adapter | None, MetricRecord | None]:
        arrays, metrics = self.strategy.aggregate_train(1, replies)
        if arrays is None:
            return None, metrics
        return {name: array.numpy() for name, array in arrays.items()}, metrics


def adapter(value: float) -> Adapter:
    return {name: np.full_like(array, value) for name, array in START.items()}


def reply(
    arrays: ArrayRecord | None, metrics: dict[str, Any] | None = None, node: int = 1
) -> Message:
    content = RecordDict({"metrics": MetricRecord(metrics or {"num-examples": 4})})
    if arrays is not None:
        content["arrays"] = arrays
    message = Message(
        content, reply_to=Message(RecordDict(), dst_node_id=node, message_type="train")
    )
    message.metadata._src_node_id = node  # type: ignore[attr-defined]
    return message


def upload(
    value: float, examples: int = 4, node: int = 1, dtype: WireDtype = "bfloat16"
) -> Message:
    return reply(to_record(adapter(value), dtype), {"num-examples": examples}, node)


def test_nodes_get_the_global_adapter_in_the_wire_type_and_mu() -> None:
    server = Server("bfloat16", proximal_mu=0.5)
    assert len(server.sent) == 4
    for message in server.sent:
        arrays = message.content.array_records["arrays"]
        assert {array.dtype for array in arrays.values()} == {"uint16"}
        assert message.content.config_records["config"][PROXIMAL_MU_KEY] == 0.5
        assert message.content.config_records["config"]["server-round"] == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_adapters_are_averaged_by_examples(dtype: WireDtype) -> None:
    server = Server(dtype)
    mean, metrics = server.train(
        upload(1.0, 1, node=1, dtype=dtype), upload(2.0, 3, node=2, dtype=dtype)
    )
    assert mean is not None
    assert mean.keys() == START.keys()
    for name, array in mean.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, np.full_like(START[name], 1.75))
    assert metrics == MetricRecord()


def test_the_order_of_arrival_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    uploads = [
        reply(
            to_record(
                {
                    # Of such different sizes that the order of a sum shows.
                    name: (rng.normal(size=array.shape) * 10.0 ** (3 * k)).astype(np.float32)
                    for name, array in START.items()
                },
                "bfloat16",
            ),
            {"num-examples": 3 + k},
            node=k + 1,
        )
        for k in range(5)
    ]
    one, other = Server().train(*uploads)[0], Server().train(*reversed(uploads))[0]
    assert one is not None
    assert other is not None
    for name in START:
        np.testing.assert_array_equal(one[name], other[name])


def _arrays(**arrays: np.ndarray) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


BITS = np.uint16


def huge_header() -> bytes:
    """An array's beginning that announces more numbers than any memory holds."""
    text = str({"descr": "<u2", "fortran_order": False, "shape": (10**15,)}) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def holding(data: bytes) -> ArrayRecord:
    """An adapter, one of whose arrays holds other bytes than it says."""
    return ArrayRecord(
        {"a": Array("uint16", (2, 3), "numpy.ndarray", data), "b": Array(np.zeros(4, BITS))}
    )


MALFORMED: dict[str, Callable[[], Message]] = {
    "no arrays": lambda: reply(None),
    "wrong names": lambda: reply(_arrays(a=np.zeros((2, 3), BITS), c=np.zeros(4, BITS))),
    "missing array": lambda: reply(_arrays(a=np.zeros((2, 3), BITS))),
    "wrong shape": lambda: reply(_arrays(a=np.zeros((3, 2), BITS), b=np.zeros(4, BITS))),
    "wrong type": lambda: reply(to_record(adapter(1.0), "float32")),
    "not a number": lambda: reply(to_record(adapter(np.nan), "bfloat16")),
    "infinite": lambda: reply(to_record(adapter(np.inf), "bfloat16")),
    "torn bytes": lambda: reply(holding(b"\x93NUMPY torn")),
    "empty bytes": lambda: reply(holding(b"")),
    "a zip file's beginning": lambda: reply(holding(b"PK\x03\x04junk")),
    "a huge shape": lambda: reply(holding(huge_header())),
    "no weight": lambda: reply(to_record(adapter(1.0), "bfloat16"), {"loss": 1.0}),
    "weight zero": lambda: upload(1.0, examples=0),
    "weight below zero": lambda: upload(1.0, examples=-3),
    "weight beyond all bounds": lambda: upload(1.0, examples=2**53),
    "metric not a number": lambda: reply(
        to_record(adapter(1.0), "bfloat16"), {"num-examples": 4, "loss": float("nan")}
    ),
    "metric a list": lambda: reply(
        to_record(adapter(1.0), "bfloat16"), {"num-examples": 4, "loss": [1.0]}
    ),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_upload_is_left_out_and_counted(what: str, warned: list[str]) -> None:
    server = Server()
    mean, _ = server.train(MALFORMED[what](), upload(2.0, node=2), upload(4.0, node=3))
    assert mean is not None
    np.testing.assert_allclose(mean["b"], 3.0)
    (report,) = server.reports
    assert len(report.rejected) == 1
    assert {node for node, _ in report.replies} == {2, 3}
    assert report.failures == 1, "one is silent"
    assert any("reply is rejected" in line for line in warned)


def test_who_claims_more_examples_than_a_node_can_have_is_left_out(warned: list[str]) -> None:
    server = Server(most_examples=4)
    mean, _ = server.train(upload(9.0, examples=5), upload(2.0, node=2), upload(4.0, node=3))
    assert mean is not None
    np.testing.assert_allclose(mean["b"], 3.0)
    assert any("'num-examples' is 5, a number above 0 and at most 4" in line for line in warned)


def test_metrics_that_some_nodes_lack_are_not_averaged_as_if_they_were_0() -> None:
    """As the loss on synthetic examples of a node that has none."""
    _, metrics = Server().train(
        reply(to_record(adapter(1.0), "bfloat16"), {"num-examples": 4, "loss": 1.0, "more": 2.0}),
        reply(to_record(adapter(1.0), "bfloat16"), {"num-examples": 4, "loss": 3.0}, node=2),
    )
    assert metrics == {"loss": 2.0}


def test_for_a_node_that_leaves_after_training_nobody_waits() -> None:
    """What the others have trained would be lost with the run."""
    server = Server(min_available_nodes=4)
    arrays = to_record(adapter(1.0), "float32")
    sent = server.strategy.configure_evaluate(1, arrays, ConfigRecord(), cast(Grid, Nodes(3)))
    assert len(list(sent)) == 3


def test_as_many_nodes_train_as_are_there_when_the_wait_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Growing(Nodes):
        def get_node_ids(self) -> list[int]:
            self.number += 1
            return super().get_node_ids()

    monkeypatch.setattr("flwr.serverapp.strategy.strategy_utils.sleep", lambda _: None)
    server = Server(min_available_nodes=3)
    grid = cast(Grid, Growing(0))
    record = to_record(START, "float32")
    assert len(list(server.strategy.configure_train(1, record, ConfigRecord(), grid))) >= 3


def test_errors_and_silence_are_failures() -> None:
    server = Server()
    reason = "Traceback\n" * 99 + "Exception ClientAppException occurred. Message: no\nmemory'>"
    failed = Message(Error(1, reason), reply_to=server.sent[0])
    mean, _ = server.train(failed, upload(2.0))
    assert mean is not None
    np.testing.assert_allclose(mean["b"], 2.0)
    assert server.reports[0].failures == 3, "one sent an error, two nothing"
    assert server.reports[0].errors == ("no memory",)


def test_an_average_is_handed_over_before_the_evaluation() -> None:
    kept: list[tuple[int, ArrayRecord]] = []
    server = Server(on_average=lambda number, arrays: kept.append((number, arrays)))
    server.train()
    assert not kept
    mean, _ = server.train(upload(2.0))
    ((number, arrays),) = kept
    assert number == 1
    assert mean is not None
    np.testing.assert_array_equal(arrays["b"].numpy(), mean["b"])


def test_with_too_few_usable_uploads_the_global_adapter_stays(warned: list[str]) -> None:
    assert Server(min_train_nodes=2).train(upload(1.0), MALFORMED["no arrays"]()) == (None, None)
    assert Server().train() == (None, None)
    assert any("the global adapter stays" in line for line in warned)


def test_adapters_are_counted_in_both_directions() -> None:
    server = Server()
    server.train(upload(1.0, node=1), upload(1.0, node=2))
    size = num_bytes(to_record(START, "bfloat16"))
    assert server.reports[0].num_bytes == 4 * size + 2 * size


def test_evaluations_are_averaged_and_checked() -> None:
    server = Server()
    arrays = to_record(adapter(1.0), "float32")
    grid = cast(Grid, Nodes(4))
    sent = list(server.strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
    assert {a.dtype for a in sent[0].content.array_records["arrays"].values()} == {"uint16"}
    metrics = server.strategy.aggregate_evaluate(
        1,
        [
            reply(None, {"num-examples": 1, "memorisation": 0.2}, node=1),
            reply(None, {"num-examples": 3, "memorisation": 0.6}, node=2),
            reply(None, {"num-examples": 3, "memorisation": float("inf")}, node=3),
        ],
    )
    assert metrics is not None
    assert metrics["memorisation"] == pytest.approx(0.5)
    (report,) = server.reports
    assert report.phase == "evaluate"
    assert len(report.rejected) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"wire_dtype": "int8"}, "wire_dtype is 'int8'"),
        ({"proximal_mu": -1.0}, "proximal_mu is -1.0"),
        ({"proximal_mu": float("nan")}, "proximal_mu is nan"),
        ({"most_examples": 0}, "most_examples is 0"),
    ],
)
def test_values_that_are_not_allowed(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FedPIT(**options)
