import tracemalloc
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from strategies import METHODS, Aggregate, aggregate, attention_weights, elbow
from strategies.aggregation import Method
from strategies.elbow import ElbowMethod
from strategies.selection import Noise

Prompts = list[NDArray[np.int64]]
Embeddings = list[NDArray[np.float32]]
CLUSTERING: tuple[Method, ...] = ("feddtpt", "attention", "kmeans")


def embed(prompts: Prompts, noise: float = 0.1, seed: int = 0) -> Embeddings:
    """One direction per token, and noise that depends on token, place and prompt, not on order."""
    table = np.random.default_rng(seed).standard_normal((40, 8))
    out = []
    for prompt in prompts:
        context = np.random.default_rng([seed, *prompt.tolist()])
        rows = table[prompt] + noise * context.standard_normal((len(prompt), 8))
        out.append(rows.astype(np.float32))
    return out


def of(*prompts: list[int]) -> Prompts:
    return [np.array(p) for p in prompts]


def run(prompts: Prompts, **options: Any) -> Aggregate:
    options.setdefault("accuracies", [p.sum() % 7 / 7 for p in prompts])
    return aggregate(prompts, embed(prompts), **options)


def reference(
    prompts: Prompts,
    embeddings: Embeddings,
    min_samples: int,
    *,
    elbow_method: ElbowMethod = "split",
    noise: Noise = "drop",
    literal: bool = False,
) -> list[int]:
    """Section 3.4 and Algorithm 2, with lists and loops and no overflow in sight.

    Empty where they leave something open.
    """
    where = [(k, n) for k, prompt in enumerate(prompts) for n in range(len(prompt))]
    unit = {(k, n): embeddings[k][n] / np.linalg.norm(embeddings[k][n]) for k, n in where}
    alpha = {}
    for k, prompt in enumerate(prompts):
        w = [
            sum(float(unit[k, n] @ unit[p]) for p in where if p[0] != k) for n in range(len(prompt))
        ]
        for n in range(len(prompt)):
            alpha[k, n] = float(np.exp(w[n]) / sum(np.exp(w))) * (1 if literal else len(prompt))
    distance = {(p, q): float(np.linalg.norm(unit[p] - unit[q])) for p in where for q in where}
    curve = sorted(
        sorted(distance[p, q] for q in where if q != p)[min(min_samples - 1, len(where) - 1) - 1]
        for p in where
    )
    eps = elbow(np.array(curve), elbow_method) * (1 + 1e-6)
    near = {p: [q for q in where if distance[p, q] <= eps] for p in where}
    core = [p for p in where if len(near[p]) >= min_samples]
    clusters: list[set[tuple[int, int]]] = []
    for p in core:
        if not any(p in cluster for cluster in clusters):
            cluster, todo = {p}, [p]
            while todo:
                for q in near[todo.pop()]:
                    if q in core and q not in cluster:
                        cluster.add(q)
                        todo.append(q)
            clusters.append(cluster)
    for p in where:
        if p not in core:
            reached = [c for c in clusters if any(q in c and q in core for q in near[p])]
            if len(reached) > 1:
                return []  # DBSCAN leaves open to which of them it belongs
            for cluster in reached:
                cluster.add(p)
            if not reached and noise == "keep":
                clusters.append({p})

    def rank(p: tuple[int, int]) -> tuple[float, int, float]:
        weight = round(float(np.log(alpha[p])), 9)
        return -weight, int(prompts[p[0]][p[1]]), p[1] / len(prompts[p[0]])

    chosen = sorted((min(cluster, key=rank) for cluster in clusters), key=rank)
    if literal:
        return [int(prompts[k][n]) for k, n in sorted(chosen, key=lambda p: p[1])]
    stood = {min(cluster, key=rank): mean_place(cluster, prompts) for cluster in clusters}
    kept: list[tuple[int, int]] = []
    for p in chosen:
        token = prompts[p[0]][p[1]]
        used = sum(prompts[k][n] == token for k, n in kept)
        if used < max(int((prompt == token).sum()) for prompt in prompts):
            kept.append(p)
    kept.sort(key=lambda p: stood[p])
    of = {min(cluster, key=rank): cluster for cluster in clusters}
    ordered: list[tuple[int, int]] = []
    for p in kept:
        ordered.append(p)
        at = len(ordered) - 1
        while at and majority_before(of[p], of[ordered[at - 1]], prompts):
            ordered[at - 1], ordered[at] = ordered[at], ordered[at - 1]
            at -= 1
    return [int(prompts[k][n]) for k, n in ordered]


def majority_before(
    one: set[tuple[int, int]], other: set[tuple[int, int]], prompts: Prompts
) -> bool:
    """Return whether more prompts have ``one`` before ``other`` than the other way round."""
    lead = 0
    for k in range(len(prompts)):
        mine, theirs = ([n for client, n in c if client == k] for c in (one, other))
        if mine and theirs:
            lead += int(np.sign(np.mean(theirs) - np.mean(mine)))
    return lead > 0


def mean_place(cluster: set[tuple[int, int]], prompts: Prompts) -> float:
    """Where the cluster's tokens stood on average, as position over prompt length."""
    return round(float(np.mean([n / len(prompts[k]) for k, n in cluster])), 9)


federations = st.lists(
    st.lists(st.integers(0, 12), min_size=1, max_size=7).map(np.array), min_size=1, max_size=6
)
every_method = pytest.mark.parametrize("method", METHODS)


def test_the_methods_are_those_of_the_signature() -> None:
    assert set(METHODS) == set(get_args(Method))


def test_what_clients_share_comes_back_in_order() -> None:
    prompts = of([1, 2, 3, 4, 20], [1, 21, 3, 4, 5], [22, 2, 3, 4, 5])
    result = run(prompts)
    assert result.tokens.tolist() == [1, 2, 3, 4, 5]
    assert result.labels is not None
    noise = [p[labels < 0].tolist() for p, labels in zip(prompts, result.labels, strict=True)]
    assert noise == [[20], [21], [22]]
    assert result.eps is not None
    assert 0 < result.eps < 0.5


def test_noise_can_stay() -> None:
    prompts = of([1, 2, 3, 4, 20], [1, 21, 3, 4, 5], [22, 2, 3, 4, 5])
    assert set(run(prompts, noise="keep").tokens.tolist()) == {1, 2, 3, 4, 5, 20, 21, 22}


def test_unequal_lengths_combine_by_relative_position() -> None:
    result = run(of([1, 2, 3], [1, 30, 2, 31, 3, 32]))
    assert result.tokens.tolist() == [1, 2, 3]


def test_a_cluster_stands_where_its_tokens_stood_on_average() -> None:
    # The heaviest 2 is the last client's, behind its 3; most had it before.
    prompts = of([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 3, 2, 4])
    assert run(prompts).tokens.tolist() == [1, 2, 3, 4]
    # Prompts that one client lengthened at the front and one at the end.
    prompts = of([1, 2, 3], [30, 31, 32, 1, 2, 3], [1, 2, 3, 33, 34, 35])
    assert run(prompts).tokens.tolist() == [1, 2, 3]


def test_repetition_survives_if_a_prompt_has_it() -> None:
    prompts = of([1, 2, 1, 3], [1, 2, 1, 4])
    rows = [np.eye(6)[[0, 1, 2, 3]], np.eye(6)[[0, 1, 2, 4]]]  # both ones have a place of their own
    assert aggregate(prompts, rows).tokens.tolist() == [1, 2, 1]
    prompts = of([1, 2, 8, 3], [8, 2, 1, 4])
    result = aggregate(prompts, rows, noise="keep")
    assert sorted(result.tokens.tolist()).count(1) == 1


def test_only_noise_falls_back_to_the_typical_prompt() -> None:
    prompts = of([1, 2], [3, 4], [5, 6])
    rows = [np.eye(6)[[0, 1]], np.array([[1.0, 1, 1, 1, 1, 1], [0, 0, 1, 1, 0, 1]]), np.eye(6)[4:]]
    result = aggregate(prompts, rows, min_samples=7)
    assert result.labels is not None
    assert all((labels == -1).all() for labels in result.labels)
    assert result.tokens.tolist() == [3, 4]


def test_average_decodes_the_mean_of_each_position() -> None:
    prompts, eye = of([0, 1], [0, 2], [3, 2]), np.eye(4)
    rows = [eye[p] for p in prompts]
    assert aggregate(prompts, rows, method="average").tokens.tolist() == [0, 2]
    heavy = aggregate(prompts, rows, method="average", client_weights=[1, 1, 5])
    assert heavy.tokens.tolist() == [3, 2]
    middle = (np.array([50, 51]), np.array([[2.0, 0, 0, 1], [0, 1, 2, 0]]))
    decoded = aggregate(prompts, rows, method="average", vocabulary=middle)
    assert decoded.tokens.tolist() == [50, 51]
    assert decoded.sources.tolist() == [[-1, -1], [-1, -1]]


def test_majority_votes_per_position() -> None:
    prompts = of([5, 1, 9], [5, 2, 9], [4, 3], [4, 3, 8, 8])
    assert run(prompts, method="majority").tokens.tolist() == [4, 3, 9]
    weighed = run(prompts, method="majority", client_weights=[9, 1, 1, 1])
    assert weighed.tokens.tolist() == [5, 1, 9]


def test_best_takes_the_most_accurate_prompt() -> None:
    prompts = of([1, 2], [3, 4, 3], [5])
    result = run(prompts, method="best", accuracies=[0.5, 0.9, 0.7])
    assert result.tokens.tolist() == [3, 4, 3]
    assert result.sources.tolist() == [[1, 0], [1, 1], [1, 2]]
    tied = run(prompts, method="best", accuracies=[0.9, 0.9, 0.7])
    assert tied.tokens.tolist() == [1, 2]


def test_attention_has_the_mean_length_and_no_copies() -> None:
    result = run(of([1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6, 7, 8]), method="attention")
    assert len(result.tokens) == 5
    assert len(set(result.tokens.tolist())) == 5


def test_attention_takes_the_heaviest_tokens_by_hand() -> None:
    """Equal tokens have cosine 1 and others 0, so that sums of similarities are small numbers."""
    prompts = of([1, 2, 3], [1, 2, 4], [1, 5, 3])
    result = aggregate(prompts, [np.eye(6)[p] for p in prompts], method="attention")
    e = np.e
    for weights, sums in zip(
        result.weights, ([e**2, e, e], [e**2, e, 1], [e**2, 1, e]), strict=True
    ):
        np.testing.assert_allclose(weights, np.array(sums) / sum(sums), atol=1e-8)
    # 1 of the last two prompts weighs 0.665, 2 of the second and 3 of the third 0.245.
    assert result.tokens.tolist() == [1, 2, 3]
    assert result.sources.tolist() == [[1, 0], [1, 1], [2, 2]]
    assert result.labels is None


@pytest.mark.parametrize(
    ("n_clusters", "tokens", "sources"),
    [
        (None, [1, 4], [[0, 0], [1, 1]]),
        (1, [1], [[0, 0]]),
        (3, [1, 4, 2], [[0, 0], [1, 1], [0, 1]]),
    ],
)
def test_kmeans_takes_the_heaviest_token_of_each_cluster_by_hand(
    n_clusters: int | None, tokens: list[int], sources: list[list[int]]
) -> None:
    """Tokens 1 and 3 are equal, 4 is 0.63 from 2 and 0.89 from these.

    The first client's sums of similarities are 1.6 and 0.8, the second's 1 and 1.4, so that their
    weights are 0.690, 0.310, 0.401 and 0.599.
    """
    rows = [np.array([[1, 0], [0, 1.0]]), np.array([[1, 0], [0.6, 0.8]])]
    result = aggregate(of([1, 2], [3, 4]), rows, method="kmeans", n_clusters=n_clusters)
    first, second = np.exp([1.6, 0.8]), np.exp([1.0, 1.4])
    np.testing.assert_allclose(result.weights[0], first / first.sum(), atol=1e-8)
    np.testing.assert_allclose(result.weights[1], second / second.sum(), atol=1e-8)
    assert result.tokens.tolist() == tokens
    assert result.sources.tolist() == sources
    assert result.labels is not None
    (one, two), (three, four) = (labels.tolist() for labels in result.labels)
    assert one == three
    assert (two == four, one == two) == {None: (True, False), 1: (True, True), 3: (False, False)}[
        n_clusters
    ]


@pytest.mark.parametrize(("n_clusters", "longest"), [(None, 4), (2, 2), (99, 6)])
def test_kmeans_has_as_many_clusters(n_clusters: int | None, longest: int) -> None:
    result = run(of([1, 2, 3, 4], [1, 2, 3, 5]), method="kmeans", n_clusters=n_clusters)
    assert 1 <= len(result.tokens) <= longest


def all_different(prompts: Prompts) -> bool:
    """Copies of a prompt tie in every weight, and places in prompts tie in the final order."""
    return len(prompts) > 1 and len({tuple(p.tolist()) for p in prompts}) == len(prompts)


@settings(max_examples=250, deadline=None)
@given(
    prompts=federations,
    min_samples=st.integers(2, 4),
    elbow_method=st.sampled_from(get_args(ElbowMethod)),
    noise=st.sampled_from(get_args(Noise)),
)
def test_the_whole_step_equals_the_slow_reference(
    prompts: Prompts, min_samples: int, elbow_method: ElbowMethod, noise: Noise
) -> None:
    # What follows is the paper's; where it is silent, other tests say what happens.
    assume(all_different(prompts))
    embeddings = embed(prompts)
    result = aggregate(
        prompts, embeddings, min_samples=min_samples, elbow_method=elbow_method, noise=noise
    )
    expected = reference(prompts, embeddings, min_samples, elbow_method=elbow_method, noise=noise)
    assume(expected)
    assert sorted(result.tokens.tolist()) == sorted(expected)
    assert result.labels is not None
    tokens = {(k, n): int(c) for k, row in enumerate(result.labels) for n, c in enumerate(row)}
    clusters = [
        {p for p in tokens if p == (k, n) or tokens[p] == tokens[k, n] >= 0}
        for k, n in result.sources.tolist()
    ]
    places = [mean_place(cluster, prompts) for cluster in clusters]
    if len(set(places)) == len(places):
        assert result.tokens.tolist() == expected


def test_no_matrix_of_all_distances_is_in_memory() -> None:
    """That of these 12,000 tokens would take 549 MiB even with four bytes a number."""
    rng = np.random.default_rng(0)
    prompts = [np.arange(20 * k, 20 * k + 20) for k in range(600)]
    embeddings = [rng.standard_normal((20, 64)).astype(np.float32) for _ in prompts]
    tracemalloc.start()
    try:
        aggregate(prompts, embeddings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * 2**20


@settings(max_examples=150, deadline=None)
@given(prompts=federations, min_samples=st.integers(2, 4))
def test_the_papers_words_alone_equal_the_slow_reference(
    prompts: Prompts, min_samples: int
) -> None:
    assume(all_different(prompts))
    embeddings = embed(prompts)
    result = aggregate(prompts, embeddings, method="literal", min_samples=min_samples)
    expected = reference(prompts, embeddings, min_samples, elbow_method="lines", literal=True)
    assume(expected)
    assert sorted(result.tokens.tolist()) == sorted(expected)
    places = result.sources[:, 1].tolist()
    assert places == sorted(places)
    if len(set(places)) == len(places):
        assert result.tokens.tolist() == expected


def test_the_papers_words_alone_put_each_token_where_it_stood() -> None:
    """Alpha is larger the shorter the prompt, so 1 and 2 are the first client's, at its start."""
    prompts = of([1, 2], [7, 3, 3, 1, 2, 8], [9, 3, 3, 1, 2, 0])
    rows = [np.eye(10)[p] for p in prompts]
    result = aggregate(prompts, rows, method="literal")
    assert result.tokens.tolist() == [1, 2, 3]
    assert result.sources.tolist() == [[0, 0], [0, 1], [1, 1]]
    # Every prompt that has them has 3 before 1.
    assert aggregate(prompts, rows).tokens.tolist() == [3, 1, 2]


def test_equal_weights_fall_to_the_smaller_token_and_then_to_the_earlier_place() -> None:
    """5 and 6 are one cluster, and as like to what the others sent: equal in every weight."""
    eye = np.eye(10)
    eye[6] = eye[5]
    for prompts in (of([1, 6], [1, 5]), of([1, 5], [1, 6])):
        assert aggregate(prompts, [eye[p] for p in prompts]).tokens.tolist() == [1, 5]
    # Here both are 5, and the place decides which of them stays.
    prompts = of([5, 1, 2], [1, 5, 2])
    for order in ([0, 1], [1, 0]):
        sent = [prompts[k] for k in order]
        result = aggregate(sent, [eye[p] for p in sent])
        source = result.sources[result.tokens.tolist().index(5)].tolist()
        assert source == [order.index(0), 0]


@pytest.mark.parametrize(("clients", "kept"), [(4, True), (40, True), (80, False), (200, False)])
def test_how_many_clients_must_agree_grows_with_their_number(clients: int, kept: bool) -> None:
    """Two of them added the same token 39 at the end; of 40 clients that is one in twenty."""
    prompts = of(*[[1, 2, 3, 4]] * (clients - 2), *[[1, 2, 3, 4, 39]] * 2)
    assert (39 in run(prompts).tokens.tolist()) == kept
    assert 39 in run(prompts, min_samples=2).tokens.tolist(), "a number of one's own stands"


def test_a_prompt_that_reads_better_is_put_together_of_what_is_as_similar() -> None:
    """5 and 6 are one cluster; 5 is a little more like the others, but 6 reads better."""
    prompts = of([1, 5, 3], [1, 6, 3], [1, 5, 3], [1, 5, 3])
    rows, rng = np.eye(12), np.random.default_rng(0)
    rows[6] = 0.99 * rows[5] + 0.05 * rows[4]
    embeddings = [rows[p] + 0.02 * rng.standard_normal((3, 12)) for p in prompts]

    def likes_six(asked: Sequence[tuple[int, ...]]) -> list[float]:
        return [float(tokens.count(6)) for tokens in asked]

    methods: tuple[Method, ...] = ("feddtpt", "kmeans")
    for method in methods:
        plain = aggregate(prompts, embeddings, method=method, n_clusters=3)
        fluent = aggregate(prompts, embeddings, method=method, n_clusters=3, fluency_fn=likes_six)
        assert (plain.tokens.tolist(), fluent.tokens.tolist()) == ([1, 5, 3], [1, 6, 3])


@every_method
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_one_prompt_comes_back_unchanged(method: Method, copies: int) -> None:
    prompts = of(*[[4, 1, 4, 2]] * copies)
    assert run(prompts, method=method).tokens.tolist() == [4, 1, 4, 2]
    assert len(run(prompts, method=method, max_tokens=3).tokens) == 3


@every_method
@settings(max_examples=40, deadline=None)
@given(prompts=federations, seed=st.integers(0, 99), limit=st.none() | st.integers(1, 6))
def test_order_of_clients_does_not_matter(
    method: Method, prompts: Prompts, seed: int, limit: int | None
) -> None:
    order = np.random.default_rng(seed).permutation(len(prompts))
    weights = [1 + p.sum() % 3 for p in prompts]
    result = run(prompts, method=method, max_tokens=limit, client_weights=weights)
    shuffled = run(
        [prompts[k] for k in order],
        method=method,
        max_tokens=limit,
        client_weights=[weights[k] for k in order],
    )
    assert shuffled.tokens.tolist() == result.tokens.tolist()
    assert shuffled.eps == result.eps
    for now, before in enumerate(order):
        assert shuffled.weights[now].tolist() == result.weights[before].tolist()


@every_method
@settings(max_examples=40, deadline=None)
@given(prompts=federations, copies=st.integers(1, 3), limit=st.none() | st.integers(1, 6))
def test_output_is_made_of_uploaded_tokens(
    method: Method, prompts: Prompts, copies: int, limit: int | None
) -> None:
    prompts = prompts * copies
    result = run(prompts, method=method, max_tokens=limit)
    assert len(result.tokens) >= 1
    assert limit is None or len(result.tokens) <= limit
    for token, (client, position) in zip(result.tokens, result.sources, strict=True):
        assert prompts[client][position] == token
    assert [len(w) for w in result.weights] == [len(p) for p in prompts]
    again = run(prompts, method=method, max_tokens=limit)
    assert again.tokens.tolist() == result.tokens.tolist()
    assert again.sources.tolist() == result.sources.tolist()


@pytest.mark.parametrize("method", CLUSTERING)
@settings(max_examples=40, deadline=None)
@given(prompts=federations)
def test_no_token_repeats_more_than_in_one_prompt(method: Method, prompts: Prompts) -> None:
    tokens = run(prompts, method=method, noise="keep").tokens.tolist()
    for token in tokens:
        assert tokens.count(token) <= max(int((p == token).sum()) for p in prompts)


def test_the_weights_are_the_attention_weights() -> None:
    prompts = of([1, 2, 3], [2, 3], [9])
    embeddings = embed(prompts)
    for ours, expected in zip(
        aggregate(prompts, embeddings).weights, attention_weights(embeddings), strict=True
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-8)


@every_method
def test_zero_embeddings_do_not_crash(method: Method) -> None:
    prompts = of([1, 2], [3, 4])
    result = aggregate(prompts, [np.zeros((2, 3))] * 2, method=method, accuracies=[0, 1])
    assert len(result.tokens) >= 1


def test_large_token_ids_of_any_integer_type_stay_exact() -> None:
    large = 2**63 - 1
    prompts: list[Any] = [[1, large], np.array([1, large], np.uint64), np.array([2], np.uint8)]
    rows = [np.eye(3)[:2], np.eye(3)[:2], np.eye(3)[2:]]
    assert aggregate(prompts, rows).tokens.tolist() == [1, large]


@pytest.mark.parametrize("method", ["feddtpt", "literal", "attention", "kmeans"])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (np.float32, 1e25),
        (np.float32, 1e-25),
        (np.float64, 1e200),
        (np.float64, 1e-200),
    ],
)
def test_the_scale_of_the_embeddings_does_not_matter(
    method: Method, dtype: type[np.floating[Any]], scale: float
) -> None:
    prompts = of([1, 2], [1, 2], [1, 3])
    rows = np.array([[1, 0], [1, 0.1], [0, 1], [0.7, -0.7]])
    plain = aggregate(prompts, [rows[p] for p in prompts], method=method)
    scaled = aggregate(prompts, [(rows[p] * scale).astype(dtype) for p in prompts], method=method)
    assert scaled.tokens.tolist() == plain.tokens.tolist()
    for ours, expected in zip(scaled.weights, plain.weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6)


def bad(**changes: Any) -> dict[str, Any]:
    prompts = of([1, 2], [3])
    return {"prompts": prompts, "embeddings": [np.ones((2, 3)), np.eye(3)[:1]]} | changes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (bad(prompts=[], embeddings=[]), "empty"),
        (bad(prompts=of([1, 2])), "1 prompts but 2"),
        (bad(prompts=of([1, 2], [])), "prompt 1"),
        (bad(prompts=[np.array([1.7, 2.2]), np.array([3])]), "prompt 0 must hold integers"),
        (bad(prompts=[np.array([1.0, 2.0]), np.array([3])]), "prompt 0 must hold integers"),
        (bad(prompts=[np.array([1, 2]), np.array([np.nan])]), "prompt 1 must hold integers"),
        (bad(prompts=[np.array([True, False]), np.array([3])]), "prompt 0 must hold integers"),
        (bad(prompts=[np.array([1, 2]), np.array([2**63 + 1], np.uint64)]), "prompt 1 holds"),
        (bad(prompts=[[1, 2], [2**64]]), "prompt 1 must hold integers, got object"),
        (bad(embeddings=[np.ones((2, 3)), np.ones((2, 3))]), "embeddings 1"),
        (bad(embeddings=[np.ones((2, 3)), np.ones((1, 4))]), "width"),
        (bad(embeddings=[np.ones((2, 3)), np.full((1, 3), np.nan)]), "not finite"),
        (
            bad(method="mean"),
            "allowed: feddtpt, literal, average, attention, kmeans, best, majority",
        ),
        (bad(elbow_method="knee"), "allowed: split"),
        (bad(noise="some"), "allowed: drop, keep"),
        (bad(min_samples=0), "at least 1"),
        (bad(max_tokens=0), "at least 1"),
        (bad(method="best"), "accuracies"),
        (bad(accuracies=[0.5]), "accuracies"),
        (bad(client_weights=[1, 2, 3]), "client weights"),
        (bad(method="kmeans", n_clusters=0), "n_clusters"),
        (bad(method="average", vocabulary=(np.arange(2), np.ones((3, 3)))), "vocabulary"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate(**arguments)
