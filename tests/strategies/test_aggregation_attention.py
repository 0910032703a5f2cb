import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies import attention_weights
from strategies.attention import log_softmax, mean_one, similarity_to_others, unit_rows

Floats = NDArray[np.float64]


def reference_similarity(embeddings: list[Floats], shares: list[float]) -> list[Floats]:
    """The paper's double sum, spelled out."""
    sums = []
    for k, own in enumerate(embeddings):
        w = np.zeros(len(own))
        for n, a in enumerate(own):
            for other, theirs in enumerate(embeddings):
                for b in theirs:
                    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
                    if other != k and norm > 0:
                        w[n] += shares[other] * float(a @ b) / norm
        sums.append(w)
    return sums


def random_embeddings(seed: int, lengths: list[int]) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, 5)) * rng.integers(0, 4, (n, 1)) for n in lengths]


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_similarity_equals_the_double_sum(seed: int, lengths: list[int]) -> None:
    embeddings = random_embeddings(seed, lengths)
    shares = np.random.default_rng(seed).random(len(lengths)) + 0.1
    expected = reference_similarity(embeddings, (shares / shares.mean()).tolist())
    for fast, slow in zip(similarity_to_others(embeddings, shares.tolist()), expected, strict=True):
        np.testing.assert_allclose(fast, slow, atol=1e-12)


@given(st.integers(0, 10_000), st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_weights_are_a_distribution_per_prompt(seed: int, lengths: list[int]) -> None:
    for weights, length in zip(
        attention_weights(random_embeddings(seed, lengths)), lengths, strict=True
    ):
        assert weights.shape == (length,)
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1)


def test_weights_by_hand() -> None:
    x, y = [1.0, 0.0], [0.0, 2.0]
    first, second = attention_weights([np.array([x, y]), np.array([x])])
    e = np.e
    np.testing.assert_allclose(first, [e / (e + 1), 1 / (e + 1)])
    np.testing.assert_allclose(second, [1])


def test_one_client_has_equal_weights() -> None:
    (weights,) = attention_weights([np.array([[1.0, 0], [0, 1], [1, 1]])])
    np.testing.assert_allclose(weights, [1 / 3] * 3)


def test_zero_vectors_are_similar_to_nothing() -> None:
    similarity = similarity_to_others([np.zeros((2, 3)), np.ones((1, 3))])
    assert [w.tolist() for w in similarity] == [[0, 0], [0]]
    assert not unit_rows(np.zeros((2, 3))).any()


@pytest.mark.parametrize("scale", [5e-324, 2.0**-1000, 2.0**-80, 2.0**80, 2.0**1000])
def test_rows_of_any_scale_have_unit_length(scale: float) -> None:
    rows = np.array([[3.0, -4.0], [0, 0]])
    assert unit_rows(rows * scale).tolist() == unit_rows(rows).tolist() == [[0.6, -0.8], [0, 0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_embeddings_must_be_finite(value: float) -> None:
    for array in (np.full((2, 3), value), np.array([[1, 2, 3], [1, value, 3]])):
        with pytest.raises(ValueError, match="not finite"):
            attention_weights([np.ones((2, 3)), array])


def test_a_client_of_weight_zero_is_not_heard() -> None:
    a, b, c = np.array([[1.0, 0]]), np.array([[1.0, 0]]), np.array([[-1.0, 0]])
    similarity = similarity_to_others([a, b, c], [1, 1, 0])
    assert similarity[0][0] == pytest.approx(1.5)  # weights become 1.5, 1.5, 0


def test_softmax_does_not_overflow() -> None:
    np.testing.assert_allclose(log_softmax(np.array([1e5, 1e5])), np.log([0.5, 0.5]))
    np.testing.assert_allclose(log_softmax(np.array([0, 2e4])), [-2e4, 0])


@pytest.mark.parametrize("weights", [[1.0], [-1, 2], [0, 0], [np.nan, 1], [np.inf, 1]])
def test_bad_client_weights(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="client weights"):
        mean_one(weights, 2)


@pytest.mark.parametrize("embeddings", [[], np.empty((0, 3, 4))])
def test_no_client(embeddings: list[Floats]) -> None:
    with pytest.raises(ValueError, match="empty"):
        attention_weights(embeddings)


def test_clients_may_be_one_array() -> None:
    weights = attention_weights(np.zeros((2, 3, 4)))  # type: ignore[arg-type]
    np.testing.assert_allclose(weights, np.full((2, 3), 1 / 3))
