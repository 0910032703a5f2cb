"""Candidates for the next global prompt, and the choice among them.

Clients that edit the same prompt edit it at different places, so what they agree on is the prompt
they were sent: any consensus of the uploads loses the edits. The candidates therefore also hold
merged edits and the best uploads, and the clients decide by counting correct answers on everybody's
private examples: what one client found has seen none of the others'.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from strategies.edits import merge

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt that may become the global one.

    Attributes
    ----------
    tokens
        Its token ids.
    origin
        Where it came from: ``"incumbent"``, ``"aggregate"``, ``"merge of N"`` or ``"client NAME"``.
    """

    tokens: Tokens
    origin: str


@dataclass(frozen=True, slots=True)
class LocalPrompt:
    """What one client made of the prompt that it was sent.

    Attributes
    ----------
    client
        The client's name.
    tokens
        Its local prompt.
    gain
        Accuracy of the local prompt minus that of the prompt sent, on the client's own examples,
        in [-1, 1].
    """

    client: str
    tokens: Tokens
    gain: float


@dataclass(frozen=True, slots=True)
class Score:
    """Correct answers of one candidate over all clients.

    Attributes
    ----------
    correct, total
        Counts, ``0 <= correct <= total``.
    """

    correct: int = 0
    total: int = 0

    @property
    def accuracy(self) -> float:
        """Share of correct answers; 0 where nothing was asked."""
        return self.correct / self.total if self.total else 0.0


def propose_candidates(
    incumbent: Tokens,
    local_prompts: Sequence[LocalPrompt],
    aggregated: Tokens | None,
    *,
    limit: int,
    max_tokens: int,
    admissible: Callable[[Tokens], bool] = lambda _: True,
) -> tuple[Candidate, ...]:
    """Return the prompts worth comparing, the incumbent first.

    The paper's aggregate, the edits of the best two, three, … clients merged, and the best local
    prompts take turns until the limit is reached.

    Parameters
    ----------
    incumbent
        The prompt that was sent.
    local_prompts
        What the clients uploaded.
    aggregated
        The paper's aggregation of them, or ``None`` to leave it out.
    limit
        Most candidates besides the incumbent, at least 1.
    max_tokens
        Longest prompt allowed.
    admissible
        Prompts for which it is false are left out; the incumbent is not asked about.
    """
    best_first = sorted(local_prompts, key=lambda p: (-p.gain, p.tokens))
    prompts = [p.tokens for p in best_first]
    merges = [
        Candidate(merge(incumbent, prompts[:count]), f"merge of {count}")
        for count in range(2, len(prompts) + 1)
    ]
    uploads = [Candidate(p.tokens, f"client {p.client}") for p in best_first]
    pure = [Candidate(aggregated, "aggregate")] if aggregated is not None else []
    ordered = [*uploads[:1], *merges[:1], *pure, *_alternate(uploads[1:], merges[1:])]
    distinct = {incumbent: Candidate(incumbent, "incumbent")}
    for candidate in ordered:
        fits = 1 <= len(candidate.tokens) <= max_tokens
        if fits and len(distinct) <= limit and admissible(candidate.tokens):
            distinct.setdefault(candidate.tokens, candidate)
    return tuple(distinct.values())


def choose(
    candidates: Sequence[Candidate], scores: Mapping[Tokens, Score]
) -> tuple[Candidate, Score]:
    """Return the candidate with the most correct answers; a tie goes to the earlier one.

    With the incumbent first, nothing replaces it that is not better.
    """
    best = max(candidates, key=lambda c: scores.get(c.tokens, Score()).accuracy)
    return best, scores.get(best.tokens, Score())


def _alternate(first: Sequence[Candidate], second: Sequence[Candidate]) -> Iterable[Candidate]:
    for index in range(max(len(first), len(second))):
        yield from first[index : index + 1]
        yield from second[index : index + 1]
