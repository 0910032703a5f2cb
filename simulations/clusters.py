"""What the server's step saw in a run's last round."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.experiment import load_task
from simulations.outcome import Outcome
from strategies import aggregate


@dataclass(frozen=True)
class TokenMap:
    """All uploaded tokens of a round, in two dimensions.

    Attributes
    ----------
    texts : list[str]
        The tokens, n in all.
    points : NDArray[np.float64]
        Shape ``(n, 2)``: the first two principal components of the unit embeddings.
    log_weights : NDArray[np.float64]
        Shape ``(n,)``: logarithms of the attention weights, each times the length of its prompt.
    labels : NDArray[np.int64]
        Shape ``(n,)``: cluster, -1 for none.
    kept : NDArray[np.bool_]
        Shape ``(n,)``: whether it is in the aggregated prompt.
    explained : tuple[float, float]
        Share of the variance that each component has, in [0, 1].
    num_prompts : int
        Clients that uploaded.
    clustered : bool
        Whether the method made clusters.
    """

    texts: list[str]
    points: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    labels: NDArray[np.int64]
    kept: NDArray[np.bool_]
    explained: tuple[float, float]
    num_prompts: int
    clustered: bool


def token_map(outcome: Outcome) -> TokenMap | None:
    """Repeat the server's last step.

    None if it had not two prompts or three tokens to choose from, or took a whole prompt ("best").

    Raises
    ------
    ConfigError, DataError, AssetError
        If the run's models are not on this machine.
    ModelError
        If a service that the run's masked language model is does not answer.
    """
    from sklearn.decomposition import PCA

    config = outcome.config
    uploads = [np.array(tokens, dtype=np.int64) for tokens in outcome.last_uploads()]
    if len(uploads) < 2 or config.aggregation == "best":
        return None
    task = load_task(config)
    masked_lm = models.masked_lm(config, task)
    vocabulary = masked_lm.vocabulary
    embeddings = models.token_embedder(config, task).embed(uploads)
    found = aggregate(
        uploads,
        embeddings,
        method=config.aggregation,
        min_samples=config.min_samples or None,
        max_tokens=config.max_prompt_tokens,
        # As the app: see `feddtpt_flwr.server_app.build`.
        fluency_fn=masked_lm.log_likelihood if config.guard else None,
    )
    flat = np.concatenate(embeddings).astype(np.float64)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    if len(np.unique(flat, axis=0)) < 3:
        return None
    pca = PCA(2, random_state=0)
    points = pca.fit_transform(flat)
    starts = np.cumsum([0, *map(len, uploads)])
    kept = np.zeros(len(flat), dtype=bool)
    for client, position in found.sources.tolist():
        if client >= 0:
            kept[starts[client] + position] = True
    return TokenMap(
        texts=[vocabulary.text([token]) for prompt in uploads for token in prompt.tolist()],
        points=points,
        log_weights=np.concatenate(found.log_weights),
        labels=np.full(len(flat), -1) if found.labels is None else np.concatenate(found.labels),
        kept=kept,
        explained=(
            float(pca.explained_variance_ratio_[0]),
            float(pca.explained_variance_ratio_[1]),
        ),
        num_prompts=len(uploads),
        clustered=found.labels is not None,
    )
