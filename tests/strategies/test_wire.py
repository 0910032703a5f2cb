import io
import pickle
from typing import Any

import numpy as np
import pytest
from flwr.common import Parameters, Scalar, ndarrays_to_parameters
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies.candidates import LocalPrompt, Score
from strategies.wire import (
    ACCURACY_KEY,
    CLIENT_KEY,
    COST_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    Reply,
    UploadError,
    check_numbers,
    correct_key,
    payload_bytes,
    read_prompt,
    read_scores,
    read_upload,
)

GOOD: dict[str, Scalar] = {GAIN_KEY: 0.25, VOCABULARY_KEY: "abc"}


def of(*tokens: int) -> NDArray[np.int64]:
    return np.array(tokens, dtype=np.int64)


def read(
    parameters: Parameters, metrics: Any = GOOD, num_examples: Any = 1, **options: Any
) -> LocalPrompt:
    return read_upload(
        Reply("7", tuple(parameters.tensors), metrics, num_examples),
        vocabulary="abc",
        vocabulary_size=100,
        max_tokens=4,
        **options,
    )


def raw(content: bytes) -> Parameters:
    return Parameters(tensors=[content], tensor_type="numpy.ndarray")


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, prompt=of(1, 2))
    return file.getvalue()


def huge() -> bytes:
    """A header that promises more than any memory holds."""
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (2**50,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


@given(st.lists(st.integers(0, 99), min_size=1, max_size=4), st.sampled_from("bhilBHIL"))
def test_a_good_upload(tokens: list[int], kind: str) -> None:
    upload = read(ndarrays_to_parameters([np.array(tokens, dtype=kind)]))
    assert upload == LocalPrompt("7", tuple(tokens), 0.25)
    assert all(type(token) is int for token in upload.tokens)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1.0, 2.0]), "float64"),
        (np.array([True, False]), "bool"),
        (np.array(["1", "2"]), "<U1"),
        (np.array([(1,)], dtype=[("token", "i8")]), "token"),
        (np.array(3), r"shape \(\)"),
        (np.array([[1, 2]]), r"shape \(1, 2\)"),
        (of(), "1 to 4 tokens, got 0"),
        (of(1, 2, 3, 4, 5), "1 to 4 tokens, got 5"),
        (of(1, -1), r"\[0, 100\), got -1 to 1"),
        (of(1, 100), r"\[0, 100\), got 1 to 100"),
        (np.array([2**64 - 1], dtype=np.uint64), "18446744073709551615"),
    ],
)
def test_a_malformed_prompt_is_named(array: NDArray[Any], message: str) -> None:
    with pytest.raises(UploadError, match=message):
        read(ndarrays_to_parameters([array]))
    with pytest.raises(UploadError, match=message):
        read_prompt(array, vocabulary_size=100, max_tokens=4)


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickled(), zipped(), huge(), pickle.dumps([1, 2]), b"\x93NUMPY"]
)
def test_unreadable_bytes_are_rejected(content: bytes) -> None:
    with pytest.raises(UploadError, match="array"):
        read(raw(content))


def test_object_arrays_are_never_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return pytest.fail, ("code from the network was run",)

    file = io.BytesIO()
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UploadError, match="unreadable array"):
        read(raw(file.getvalue()))


@pytest.mark.parametrize("number", [0, 2])
def test_an_upload_is_one_array(number: int) -> None:
    with pytest.raises(UploadError, match=f"one array, got {number}"):
        read(ndarrays_to_parameters([of(1)] * number))


@pytest.mark.parametrize(
    "gain",
    [float("nan"), float("inf"), -1.5, 1.01, "0.5", b"0", [0.5], [], None, 10**400, {"a": 1}],
)
def test_a_bad_gain_is_named(gain: Any) -> None:
    with pytest.raises(UploadError, match=r"gain must be a number in \[-1, 1\]"):
        read(ndarrays_to_parameters([of(1)]), GOOD | {GAIN_KEY: gain})


def test_another_vocabulary_is_named() -> None:
    with pytest.raises(UploadError, match=r"'xyz' is not the server's 'abc'.*same masked-lm"):
        read(ndarrays_to_parameters([of(1)]), GOOD | {VOCABULARY_KEY: "xyz"})


def test_what_a_client_may_leave_out() -> None:
    assert read(ndarrays_to_parameters([of(1)]), {}) == LocalPrompt("7", (1,), 0.0)


def test_floats_hint_at_mods() -> None:
    with pytest.raises(UploadError, match="add noise to them do not work on token ids"):
        read(ndarrays_to_parameters([np.array([1.0])]))


def test_a_client_has_the_name_it_gives_itself() -> None:
    assert Reply("7", (), {}).client == "7"
    assert Reply("7", (), {CLIENT_KEY: "ward 3"}).client == "ward 3"
    assert Reply("7", (), {CLIENT_KEY: 5}).client == "5"
    assert len(Reply("7", (), {CLIENT_KEY: "x" * 10**6}).client) == 64, "logs stay readable"


@pytest.mark.parametrize(
    ("client_weights", "weight"), [("equal", 1.0), ("examples", 12.0), ("accuracy", 0.75)]
)
def test_what_a_client_is_weighed_by(client_weights: Any, weight: float) -> None:
    parameters = ndarrays_to_parameters([of(1)])
    metrics = GOOD | {ACCURACY_KEY: 0.75}
    upload = read(parameters, metrics, num_examples=12, client_weights=client_weights)
    assert upload.weight == weight
    assert upload.accuracy == 0.75


@pytest.mark.parametrize("number", [0, -1, 2.5, None, "9", float("nan"), 2**60])
def test_a_bad_number_of_examples_to_weigh_by_is_named(number: Any) -> None:
    parameters = ndarrays_to_parameters([of(1)])
    with pytest.raises(UploadError, match="number of examples must be a positive count"):
        read(parameters, num_examples=number, client_weights="examples")
    assert read(parameters, num_examples=number).weight == 1.0, "nobody asked"


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, None, "1", float("nan"), [1.0]])
def test_a_bad_accuracy_to_weigh_by_is_named(accuracy: Any) -> None:
    with pytest.raises(UploadError, match=r"accuracy must be a number in \[0, 1\]"):
        read(
            ndarrays_to_parameters([of(1)]),
            GOOD | {ACCURACY_KEY: accuracy},
            client_weights="accuracy",
        )


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, 85.0, None])
def test_what_is_no_accuracy_is_none(accuracy: Any) -> None:
    upload = read(ndarrays_to_parameters([of(1)]), GOOD | {ACCURACY_KEY: accuracy})
    assert upload.accuracy is None


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {ACCURACY_KEY: 1, COST_KEY: 0.25},
        {"loss": 1e300, "classes": [0.5, 2], "none": [], "names": ["a", "b"], "name": "nan"},
        {"raw": b"nan", "big": 2**63, "yes": True},
    ],
)
@pytest.mark.parametrize("number", [None, 1, 0.5, 2**53 - 1])
def test_numbers_that_can_be_averaged(metrics: dict[str, Any], number: Any) -> None:
    check_numbers(Reply("7", (b"",), metrics, number))


@pytest.mark.parametrize("key", [ACCURACY_KEY, COST_KEY, "loss"])
@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 10**400, [0.5, float("nan")]]
)
def test_a_number_that_is_not_finite_is_named(key: str, value: Any) -> None:
    with pytest.raises(UploadError, match=f"{key} must be a number that is finite, got"):
        check_numbers(Reply("7", (b"",), {key: value}))


@pytest.mark.parametrize("value", ["0.5", b"1", None, [0.5], []])
def test_what_is_no_single_number_is_named(value: Any) -> None:
    with pytest.raises(UploadError, match="accuracy must be a number that is finite, got"):
        check_numbers(Reply("7", (b"",), {ACCURACY_KEY: value}))


def test_a_long_value_is_told_in_a_short_line() -> None:
    with pytest.raises(UploadError) as error:
        check_numbers(Reply("7", (b"",), {ACCURACY_KEY: "x\n" * 10**6}))
    assert len(str(error.value)) < 400


LONG = "x" * 10**6


@pytest.mark.parametrize(
    ("metrics", "weights"),
    [
        ({VOCABULARY_KEY: LONG}, "equal"),
        ({GAIN_KEY: LONG}, "equal"),
        ({ACCURACY_KEY: LONG}, "accuracy"),
    ],
)
def test_a_long_value_of_an_upload_is_told_in_a_short_line(
    metrics: dict[str, Any], weights: str
) -> None:
    with pytest.raises(UploadError) as error:
        read(ndarrays_to_parameters([of(1, 2)]), metrics, client_weights=weights)
    assert len(str(error.value)) < 450


@pytest.mark.parametrize("metrics", [{SCORED_KEY: LONG}, {SCORED_KEY: 3, correct_key(0): LONG}])
def test_a_long_count_is_told_in_a_short_line(metrics: dict[str, Any]) -> None:
    with pytest.raises(UploadError) as error:
        read_scores(metrics, [(1, 2)])
    assert len(str(error.value)) < 400


def test_a_name_is_one_short_line_that_no_terminal_obeys() -> None:
    reply = Reply("7", (), {CLIENT_KEY: "x\n\x1b[2Jround 3: hello" + LONG})
    assert reply.client.startswith("x [2Jround 3: hello")
    assert len(reply.client) < 65


@pytest.mark.parametrize("number", [0, 0.0, -1, float("nan"), float("inf"), 2**53, "9", [1]])
def test_a_bad_number_of_examples_to_average_by_is_named(number: Any) -> None:
    with pytest.raises(UploadError, match="number of examples must be a number above 0, got"):
        check_numbers(Reply("7", (b"",), {}, number))


def test_a_failure_may_be_on_no_examples_unless_there_is_a_prompt() -> None:
    check_numbers(Reply("7", (), {FAILURE_KEY: "the model is down"}, 0))
    with pytest.raises(UploadError, match="above 0, got 0"):
        check_numbers(Reply("7", (b"",), {FAILURE_KEY: "the model is down"}, 0))


CANDIDATES = [(1, 2), (3,)]


def counts(*correct: Any, scored: Any = 8) -> dict[str, Any]:
    return {SCORED_KEY: scored} | {correct_key(i): count for i, count in enumerate(correct)}


def test_good_scores() -> None:
    scores = read_scores(counts(0, 8), CANDIDATES)
    assert scores == {(1, 2): Score(0, 8), (3,): Score(8, 8)}


@pytest.mark.parametrize("count", [9, -1, 2.0, "2", None, float("nan"), [2]])
def test_a_bad_count_is_named(count: Any) -> None:
    with pytest.raises(UploadError, match=r"correct-1 must be a count in \[0, 8\]"):
        read_scores(counts(3, count), CANDIDATES)


def test_a_missing_count_is_named() -> None:
    with pytest.raises(UploadError, match=r"correct-1 .* got None"):
        read_scores(counts(3), CANDIDATES)


@pytest.mark.parametrize("scored", [0, -8, 8.0, "8", None])
def test_a_bad_number_of_examples_is_named(scored: Any) -> None:
    with pytest.raises(UploadError, match="num-scored must be a positive count"):
        read_scores(counts(0, 0, scored=scored), CANDIDATES)


def test_payload_counts_what_travels() -> None:
    scalars: dict[str, Scalar] = {"a": 1, "bc": 0.5, "d": "é", "e": b"xyz", "f": True}
    assert payload_bytes([b"12345", b"6"], {}) == 6
    assert payload_bytes([], scalars) == (1 + 8) + (2 + 8) + (1 + 2) + (1 + 3) + (1 + 8)
    assert payload_bytes([], {"a": [1, 2, 3]}) == 1 + 3 * 8
    assert Reply("0", (b"123",), {"a": 1}).num_bytes == 3 + 9
