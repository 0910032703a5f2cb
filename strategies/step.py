"""The server's step: from what the clients uploaded to the prompts worth comparing."""

from collections.abc import Sequence

import numpy as np

from strategies.aggregation import Aggregate, aggregate
from strategies.candidates import Candidate, LocalPrompt, Tokens, low_median, propose_candidates
from strategies.clustering import min_samples_for
from strategies.edits import apply_edits
from strategies.settings import RoundSettings
from strategies.shared_edits import shared_edits


def next_candidates(
    prompt: Tokens, uploads: Sequence[LocalPrompt], settings: RoundSettings
) -> tuple[Candidate, ...]:
    """Return the prompts that may become the global one.

    Parameters
    ----------
    prompt : Tokens
        The global prompt so far.
    uploads : Sequence[LocalPrompt]
        What the clients made of it, at least one.
    settings : RoundSettings
        What the step is to be like.

    Returns
    -------
    tuple[Candidate, ...]
        With a guard the prompt so far first, then those to compare it with; without one just the
        paper's next global prompt (Algorithm 2).
    """
    result = _aggregate(uploads, settings)
    aggregated = tuple(result.tokens.tolist())
    if not settings.guard:
        return (Candidate(aggregated, "aggregate"),)
    shared = shared_edits(
        prompt,
        uploads,
        result.labels,
        result.log_weights,
        min_clients=min_samples_for(len(uploads)),
    )
    return propose_candidates(
        prompt,
        uploads,
        aggregated,
        apply_edits(prompt, shared),
        limit=settings.race_candidates,
        max_tokens=settings.max_tokens,
        admissible=settings.admissible,
    )


def _aggregate(uploads: Sequence[LocalPrompt], settings: RoundSettings) -> Aggregate:
    prompts = [np.array(upload.tokens, dtype=np.int64) for upload in uploads]
    weights = [upload.weight for upload in uploads]
    if settings.client_weights == "examples":
        # Their number is the client's own word: see `tally`.
        limit = low_median(weights)
        weights = [min(weight, limit) for weight in weights]
    return aggregate(
        prompts,
        settings.embed_fn(prompts),
        method=settings.aggregation,
        min_samples=settings.min_samples,
        elbow_method=settings.elbow_method,
        noise=settings.noise,
        n_clusters=settings.n_clusters,
        fluency_fn=settings.fluency_fn,
        max_tokens=settings.max_tokens,
        # Behind all that report an accuracy, in [0, 1], those that do not, by their gain.
        accuracies=[
            upload.gain - 2 if upload.accuracy is None else upload.accuracy for upload in uploads
        ],
        client_weights=weights if any(weights) else None,
    )
