"""What the server's step leaves open: DBSCAN's radius, noise, ties, repeated tokens, the order.

python -m simulations bench choices --json simulations/results/choices.json

Made-up federations with real embeddings. Every client makes changes of a task's seed prompt that
the search's own proposer suggests, at random and unseen by any black box. Which token came from
which is therefore known: those that came from one token of the seed prompt belong together, what a
client wrote itself belongs to nothing. A radius is good if DBSCAN finds these groups.

The order is good if the tokens of the seed prompt come out as they stood in it, and if the prompt
reads well, by the model that proposed.

Besides the elbows of `strategies.elbow` there are the library kneed, if it is installed, and the
best radius that any elbow could have found, which no server knows.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import get_task
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.masked_lm import TokenEmbedder
from feddtpt_flwr.proposer import MaskedLMProposer, Proposer
from simulations import bench_aggregation
from simulations.stamp import stamp
from strategies import ELBOWS, aggregate, cluster_tokens, elbow, min_samples_for
from strategies.attention import unit_rows
from strategies.candidates import Tokens
from strategies.elbow import neighbour_distances
from strategies.methods import METHODS, Settings
from strategies.selection import Noise, by_mean_place, heaviest, in_order, most_fluent
from strategies.uploads import collect

TASKS = ("rotten_tomatoes", "bbc_news", "tweet_sentiment", "rte", "mrpc")
CLIENTS = (4, 10)
SEEDS = (0, 1, 2, 3, 4)
EDITS = 2
"""Changes of each client, one after the other."""

SUPPORTS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3)
MANY_CLIENTS = (4, 10, 100, 1000)
CLUSTER_SEEDS = (0, 1)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Radius = Callable[[Floats], float]


@dataclass(frozen=True)
class Lineage:
    """A prompt whose tokens' origin is known.

    Attributes
    ----------
    tokens
        Its token ids, ``N`` of them.
    origins
        As many places in the seed prompt, -1 for what is new.
    """

    tokens: tuple[int, ...]
    origins: tuple[int, ...]


def edited(seed_prompt: Sequence[int], proposer: Proposer, rng: np.random.Generator) -> Lineage:
    """Change a prompt `EDITS` times as ``proposer`` suggests."""
    tokens, origins = tuple(seed_prompt), tuple(range(len(seed_prompt)))
    for _ in range(EDITS):
        for edit in proposer.propose(tokens, Feedback(), rng, 1):
            tokens = edit.apply(tokens)
            new = (-1,) * len(edit.tokens)
            origins = origins[: edit.start] + new + origins[edit.stop :]
    return Lineage(tokens, origins)


def singles(labels: Ints) -> Ints:
    """Give everything of label -1 a label of its own."""
    alone = labels < 0
    result = labels.copy()
    result[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    return result


def judged(prompts: Sequence[Lineage], embeddings: Sequence[NDArray[Any]]) -> dict[str, Any]:
    """Return how well each way to read the radius finds the groups of one federation.

    Returns
    -------
    dict
        For each way, ``rand``, the adjusted Rand index between DBSCAN's clusters and the true
        groups, at most 1 and 0 by chance, noise being clusters of one; and ``largest``, the share
        of all tokens in the largest cluster.
    """
    from sklearn.metrics import adjusted_rand_score

    truth = singles(np.concatenate([np.array(p.origins) for p in prompts]))
    points = unit_rows(np.concatenate(embeddings)).astype(np.float32)
    needed = min_samples_for(len(prompts))
    # As `strategies.methods.feddtpt` does it.
    curve = neighbour_distances(points, max(1, needed - 1))

    def at(radius: float) -> dict[str, float]:
        labels = singles(cluster_tokens(points, radius * (1 + 1e-6), needed))
        return {
            "rand": float(adjusted_rand_score(truth, labels)),
            "largest": float(np.bincount(labels).max() / len(labels)),
        }

    found = {name: at(radius(curve)) for name, radius in _ways().items()}
    best = max((at(radius) for radius in np.unique(curve)), key=lambda figures: figures["rand"])
    return found | {"best radius": best}


def noise_kept(
    prompts: Sequence[Lineage],
    embeddings: Sequence[NDArray[Any]],
    noise: Noise,
    max_tokens: int | None = None,
) -> dict[str, float]:
    """Return what is in the next prompt of one federation.

    Returns
    -------
    dict
        ``tokens``, its length; ``seed_share``, the share of the seed prompt's tokens that it holds,
        in [0, 1]; ``new``, how many tokens it holds that a client wrote itself.
    """
    tokens = [np.array(p.tokens) for p in prompts]
    result = aggregate(tokens, embeddings, noise=noise, max_tokens=max_tokens)
    origins = [prompts[client].origins[place] for client, place in result.sources.tolist()]
    there = {origin for prompt in prompts for origin in prompt.origins if origin >= 0}
    return {
        "tokens": float(len(result.tokens)),
        "seed_share": len(set(origins) - {-1}) / max(len(there), 1),
        "new": float(origins.count(-1)),
    }


def orders(
    prompts: Sequence[Lineage],
    embeddings: Sequence[NDArray[Any]],
    log_likelihood: Callable[[Sequence[Tokens]], Floats],
) -> dict[str, dict[str, float]]:
    """Return how the next prompt of one federation reads, by how its tokens are put in order.

    Returns
    -------
    dict
        As `strategies.aggregate` does it, neighbours as most prompts have them; by mean place
        alone; with tokens of equal weight exchanged; with every repeated token; and by the paper's
        words alone, ``aggregation="literal"``: ``nats``, the
        negative log-likelihood per token; ``misplaced``, the share of pairs of seed tokens that
        stand the other way round than in the seed prompt; ``exchanged``, the share of tokens that
        others stand for; and ``tokens``, how many there are.
    """
    uploads = collect([np.array(p.tokens) for p in prompts], embeddings)
    origins = np.concatenate([prompts[client].origins for client in uploads.arrival])
    choice = METHODS["feddtpt"](uploads, Settings())
    rows, labels = choice.rows, np.array(choice.labels)
    ways = {
        "as it is": rows,
        "mean place": by_mean_place(uploads, rows, labels),
        "equal weights by fluency": most_fluent(uploads, rows, labels, log_likelihood),
        "every repetition": in_order(uploads, heaviest(uploads, labels), labels),
        "the paper's words": METHODS["literal"](uploads, Settings()).rows,
    }
    result = {}
    for name, found in ways.items():
        tokens = tuple(uploads.tokens[found].tolist())
        result[name] = {
            "nats": -float(log_likelihood([tokens])[0]) / len(tokens),
            "misplaced": _misplaced(origins[found]),
            "exchanged": float((~np.isin(rows, found)).mean()),
            "tokens": float(len(found)),
        }
    return result


def ties(prompts: Sequence[Lineage], embeddings: Sequence[NDArray[Any]]) -> float:
    """Return the share of clusters whose largest weight several tokens have, in [0, 1]."""
    uploads = collect([np.array(p.tokens) for p in prompts], embeddings)
    labels = np.array(METHODS["feddtpt"](uploads, Settings()).labels)
    tied = []
    for cluster in range(labels.max(initial=-1) + 1):
        members = labels == cluster
        largest = members & (uploads.log_weights == uploads.log_weights[members].max())
        tied.append(len(set(uploads.tokens[largest].tolist())) > 1)
    return float(np.mean(tied)) if tied else 0.0


def clusters_found(support: float, clients: int, seed: int) -> float:
    """Return how many clusters a made-up federation of prompts of 20 tokens has.

    Parameters
    ----------
    support
        Share of the clients that make a core point, in [0, 1]; ``min_samples`` is at least 2.
    clients, seed
        As of `bench_aggregation.federation`.
    """
    _, prompts, embeddings = bench_aggregation.federation(clients, 20, 384, seed)
    needed = max(2, math.ceil(support * clients))
    labels = aggregate(prompts, embeddings, min_samples=needed).labels
    return float(1 + max(int(own.max()) for own in labels or ()))


def _misplaced(origins: Ints) -> float:
    """Return the share of pairs of seed tokens that stand the wrong way round, in [0, 1]."""
    seed = origins[origins >= 0]
    first, second = np.triu_indices(len(seed), 1)
    pairs = seed[second] - seed[first]
    return float((pairs < 0).sum() / max((pairs != 0).sum(), 1))


def summary(federations: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Average the figures of each way over federations, and take the worst largest cluster."""
    result: dict[str, Any] = {}
    for name, first in federations[0].items():
        columns = {key: [federation[name][key] for federation in federations] for key in first}
        result[name] = {key: round(float(np.mean(values)), 3) for key, values in columns.items()}
        if "largest" in columns:
            result[name]["largest_worst"] = round(max(columns["largest"]), 3)
    return result


def run(
    tasks: Sequence[str] = TASKS, clients: Sequence[int] = CLIENTS, seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    """Compare the ways over one federation for each task, number of clients and seed.

    Returns
    -------
    dict
        ``elbows``, ``noise``, ``orders`` and ``ties`` with the means over federations;
        ``clusters``, of made-up embeddings, by support and number of clients; and the settings.
    """
    config = RunConfig.from_run_config({})
    elbows, noises, ordered, tied = [], [], [], []
    for name, number, seed in product(tasks, clients, seeds):
        task = get_task(name)
        masked_lm = models.masked_lm(config, task)
        proposer = MaskedLMProposer(
            masked_lm, max_tokens=config.max_prompt_tokens, use_feedback=False, reword=False
        )
        rng = np.random.default_rng([seed, number, *name.encode()])
        start = masked_lm.vocabulary.encode(task.seed_prompt)
        prompts = [edited(start, proposer, rng) for _ in range(number)]
        embedder: TokenEmbedder = models.token_embedder(config, task)
        embeddings = embedder.embed([np.array(p.tokens) for p in prompts])
        elbows.append(judged(prompts, embeddings))
        tied.append(ties(prompts, embeddings))
        ordered.append(orders(prompts, embeddings, masked_lm.log_likelihood))
        limit = config.max_prompt_tokens
        noises.append(
            {way: noise_kept(prompts, embeddings, way) for way in get_args(Noise)}
            | {f"keep, at most {limit}": noise_kept(prompts, embeddings, "keep", limit)}
        )
    return {
        **stamp(),
        "tasks": list(tasks),
        "clients": list(clients),
        "seeds": list(seeds),
        "edits": EDITS,
        "federations": len(elbows),
        "elbows": summary(elbows),
        "noise": summary(noises),
        "orders": summary(ordered),
        "ties": round(float(np.mean(tied)), 4),
        "clusters": {
            str(support): {
                str(number): [clusters_found(support, number, seed) for seed in CLUSTER_SEEDS]
                for number in MANY_CLIENTS
            }
            for support in SUPPORTS
        },
    }


def _ways() -> dict[str, Radius]:
    def ours(name: Any) -> Radius:
        return lambda curve: elbow(curve, name)

    ways = {name: ours(name) for name in ELBOWS}
    try:
        from kneed import KneeLocator
    except ImportError:
        return ways

    def kneed(curve: Floats) -> float:
        if len(curve) < 3 or curve[0] == curve[-1]:
            return float(curve[-1])
        places = np.arange(len(curve))
        knee = KneeLocator(places, curve, curve="convex", direction="increasing").knee
        # Without a knee all distances are near ones.
        return float(curve[-1 if knee is None else int(knee)])

    return ways | {"kneed": kneed}
