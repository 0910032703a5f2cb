"""Time and peak memory of the server's step in one round, against the quadratic way.

The step is what a strategy does between the last upload and the candidates that it sends: the
paper's aggregation, and the prompts that the clients are to compare. Embeddings are made up, so
that a model's time is not in it.

python -m simulations bench aggregation --clients 1000 --json -
"""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies import Aggregate, aggregate, min_samples_for
from strategies.candidates import LocalPrompt, propose_candidates
from strategies.edits import apply_edits
from strategies.shared_edits import shared_edits

Ints = NDArray[np.int64]
Float32s = NDArray[np.float32]

VOCABULARY, EDITS, CONTEXT_NOISE = 3000, 3, 0.3
QUADRATIC_TOKENS = 12_000
"""The quadratic reference runs up to so many tokens: its matrix of distances is 0.6 GB then."""


CANDIDATES = 4
"""Most candidates besides the incumbent, as the strategies have it by default."""


def federation(
    clients: int, tokens: int, dim: int, seed: int
) -> tuple[list[int], list[Ints], list[Float32s]]:
    """Draw prompts and contextual embeddings as a round of tuning leaves them.

    Every client edits a shared prompt in three places: it replaces (7 in 10), inserts (2 in 10)
    or deletes (1 in 10). A token's embedding is its own direction plus noise of 0.3 its length
    in each prompt, so equal tokens are about 0.4 apart, and unequal ones about 1.25.

    Parameters
    ----------
    clients, tokens, dim, seed
        Number of clients, length of the shared prompt, embedding width, seed.

    Returns
    -------
    shared, prompts, embeddings
        The shared prompt; one array of shape ``(N_k,)`` and one of shape ``(N_k, dim)`` per client.
    """
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((VOCABULARY, dim)) + 0.5 * rng.standard_normal(dim)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    shared = rng.integers(VOCABULARY, size=tokens).tolist()
    prompts, embeddings = [], []
    for _ in range(clients):
        prompt = list(shared)
        for kind in rng.choice(3, EDITS, p=[0.7, 0.2, 0.1]):
            place, token = int(rng.integers(len(prompt))), int(rng.integers(VOCABULARY))
            if kind < 2:
                prompt[place : place + 1 - kind] = [token]
            elif len(prompt) > 1:
                del prompt[place]
        noise = rng.standard_normal((len(prompt), dim)) * (CONTEXT_NOISE / np.sqrt(dim))
        prompts.append(np.array(prompt, dtype=np.int64))
        embeddings.append((table[prompt] + noise).astype(np.float32))
    return shared, prompts, embeddings


def peak_mib(process: int | None = None) -> float:
    """Most memory that a process has held, in MiB; by default this one.

    Of others only Linux tells: with `FileNotFoundError` elsewhere, or if there is none.

    Linux carries ``ru_maxrss`` over from the parent when a program starts; ``VmHWM`` is the
    process's own.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    if process or status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def quadratic(embeddings: list[Float32s], eps: float, min_samples: int) -> Ints:
    """Attention, neighbour distances and clusters from one full matrix, as written in the paper.

    Returns
    -------
    NDArray[np.int64]
        DBSCAN's labels for ``eps`` and ``min_samples``, shape ``(tokens of all clients,)``.
    """
    from sklearn.cluster import DBSCAN

    points = np.concatenate(embeddings)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    cosine = points @ points.T
    client = np.repeat(np.arange(len(embeddings)), [len(e) for e in embeddings])
    for k in range(len(embeddings)):
        _ = cosine[client == k][:, client != k].sum(axis=1)
    distances = np.sqrt(np.maximum(2 - 2 * cosine, 0))
    np.fill_diagonal(distances, 0)
    np.partition(distances, min_samples - 1, axis=1)[:, min_samples - 1].sort()
    dbscan = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed")
    return np.asarray(dbscan.fit(distances).labels_)


def _measure(clients: int, tokens: int, dim: int, seed: int) -> dict[str, Any]:
    # The first aggregation imports these; that is no part of its time.
    import sklearn.cluster
    import sklearn.neighbors  # noqa: F401

    shared, prompts, embeddings = federation(clients, tokens, dim, seed)
    gains = np.random.default_rng([seed, clients]).random(clients).tolist()
    uploads = [
        LocalPrompt(str(k), tuple(prompt.tolist()), gain)
        for k, (prompt, gain) in enumerate(zip(prompts, gains, strict=True))
    ]
    before = peak_mib()
    start = time.perf_counter()
    result: Aggregate = aggregate(prompts, embeddings)
    aggregated = time.perf_counter()
    edits = shared_edits(
        tuple(shared),
        uploads,
        result.labels,
        result.log_weights,
        min_clients=min_samples_for(clients),
    )
    candidates = propose_candidates(
        tuple(shared),
        uploads,
        tuple(result.tokens.tolist()),
        apply_edits(tuple(shared), edits),
        limit=CANDIDATES,
        max_tokens=tokens + EDITS * clients,
    )
    seconds = time.perf_counter() - start
    return {
        "clients": clients,
        "tokens": tokens,
        "dim": dim,
        "seed": seed,
        "seconds": round(seconds, 3),
        "propose_seconds": round(seconds - (aggregated - start), 3),
        "candidates": len(candidates),
        "peak_mib": round(peak_mib()),
        "uploads_mib": round(before),
        "prompt_tokens": len(result.tokens),
        "eps": result.eps,
    }


def _measure_quadratic(
    clients: int, tokens: int, dim: int, seed: int
) -> dict[str, float | bool | None]:
    _, prompts, embeddings = federation(clients, tokens, dim, seed)
    result = aggregate(prompts, embeddings)
    if result.eps is None or result.labels is None:
        return {"quadratic_seconds": None, "quadratic_agrees": None}
    start = time.perf_counter()
    # The token at the elbow lies on the border, and a float32 matrix rounds coarsely.
    labels = quadratic(embeddings, result.eps * (1 + 1e-5), min_samples_for(clients))
    seconds = time.perf_counter() - start
    ours, theirs = np.concatenate(result.labels), labels
    # Clients come in another order there, and with it the numbers of the clusters.
    pairs = len(set(zip(ours.tolist(), theirs.tolist(), strict=True)))
    agrees = pairs == len(set(ours.tolist())) == len(set(theirs.tolist()))
    return {"quadratic_seconds": round(seconds, 3), "quadratic_agrees": agrees}


def run(clients: int, tokens: int = 20, dim: int = 384, seed: int = 0) -> dict[str, Any]:
    """Measure the server's step in a process of its own.

    Parameters
    ----------
    clients
        Number of clients, at least 1.
    tokens
        Length of the prompt they share.
    dim
        Width of the embeddings.
    seed
        Seed of the made-up uploads.

    Returns
    -------
    dict
        ``seconds`` of the step, ``propose_seconds`` of them for the candidates; ``peak_mib`` of the
        whole process, interpreter, libraries and uploads included; ``uploads_mib``, the peak
        before the step; ``candidates``, how many prompts there are to compare;
        ``quadratic_seconds`` of the quadratic way and ``quadratic_agrees``, whether its clusters
        are the same, both ``None`` beyond :data:`QUADRATIC_TOKENS` tokens; and the settings.
    """
    report: dict[str, Any] = {"quadratic_seconds": None, "quadratic_agrees": None}
    steps = [_measure]
    if clients * tokens <= QUADRATIC_TOKENS:
        steps.append(_measure_quadratic)
    for step in steps:
        # A fresh process, so that its peak is its own.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            report |= pool.submit(step, clients, tokens, dim, seed).result()
    return report
