"""Prompts of public tokens only: words that anybody would expect, whatever a client's texts say."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.proposer import Proposer
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens
from strategies.edits import Edit

NUM_COMMON = 10_000
"""Whole words among so many first token ids count as common.

Vocabularies of byte-pair encoding and WordPiece are in the order of frequency in the text that
they were made of, or nearly so. Frequent names, such as those of large cities, are among them.
"""


def allowed_tokens(config: RunConfig, task: Task, public: Sequence[Example]) -> NDArray[np.bool_]:
    """Return which tokens a run with ``privacy = "public-tokens"`` lets out (`public_tokens`)."""
    texts = public_texts(task, config.seed_prompt or task.seed_prompt, public)
    return public_tokens(models.masked_lm(config, task).vocabulary, texts)


def public_texts(task: Task, seed_prompt: str, public: Sequence[Example]) -> list[str]:
    """Return the texts that all parties of a run know.

    Parameters
    ----------
    task : Task
        Its template, labels, answer words and their synonyms.
    seed_prompt : str
        The first global prompt.
    public : Sequence[Example]
        The public set.
    """
    frame = task.compose(" ", task.render(dict.fromkeys(task.text_columns, " ")))
    synonyms = [word for words in task.synonyms for word in words]
    words = [*map(str, task.labels), *task.answers, *synonyms]
    return [seed_prompt, frame, *words, *(example.input for example in public)]


def public_tokens(
    vocabulary: Vocabulary, texts: Iterable[str], num_common: int = NUM_COMMON
) -> NDArray[np.bool_]:
    """Return which tokens are public: common whole words, punctuation, the tokens of ``texts``.

    Parameters
    ----------
    vocabulary : Vocabulary
        The masked language model's.
    texts : Iterable[str]
        Texts that all parties know.
    num_common : int
        See `NUM_COMMON`.

    Returns
    -------
    NDArray[np.bool_]
        Mask of shape ``(len(vocabulary),)``.
    """
    public = vocabulary.proposable()
    for token in np.flatnonzero(public).tolist():
        if token >= num_common:
            public[token] = not vocabulary.decode([token]).isalpha()
    for text in texts:
        public[list(vocabulary.encode(text))] = True
    return public


class PublicTokensProposer:
    """Puts the nearest public token in the place of any other that is proposed.

    So what is tried is what can be uploaded, and no query is paid for anything else. Where the
    masked language model has no embeddings, a change with other tokens is not proposed.

    Parameters
    ----------
    proposer : Proposer
        Proposes changes.
    masked_lm : MaskedLM
        Its token embeddings say what is near.
    public : NDArray[np.bool_]
        The public tokens, shape ``(len(vocabulary),)``.
    excluded_words : tuple[str, ...]
        Words never put in, whatever their case.
    """

    def __init__(
        self,
        proposer: Proposer,
        masked_lm: MaskedLM,
        public: NDArray[np.bool_],
        excluded_words: tuple[str, ...] = (),
    ) -> None:
        self._proposer = proposer
        self._masked_lm = masked_lm
        self._public = public
        self._excluded = excluded_words

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return at most ``count`` edits of the prompt ``tokens``, none with other tokens."""
        edits = self._proposer.propose(tokens, feedback, rng, count)
        return [made for edit in edits if (made := self._made_public(edit)) is not None]

    def _made_public(self, edit: Edit) -> Edit | None:
        if self._public[list(edit.tokens)].all():
            return edit
        embeddings = self._masked_lm.token_embeddings
        if embeddings is None:
            return None
        tokens = tuple(
            token if self._public[token] else self._nearest(embeddings, token)
            for token in edit.tokens
        )
        return replace(edit, tokens=tokens)

    def _nearest(self, embeddings: NDArray[np.float32], token: int) -> int:
        return int(self._choices[np.argmax(embeddings[self._choices] @ embeddings[token])])

    @cached_property
    def _choices(self) -> NDArray[np.int64]:
        proposable = self._masked_lm.vocabulary.proposable(self._excluded)
        return np.flatnonzero(self._public & proposable)


def passes(tokens: Tokens, received: Tokens, public: NDArray[np.bool_]) -> bool:
    """Return whether a prompt may be uploaded: all tokens public, or in the prompt received."""
    return bool(np.all(public[list(tokens)] | np.isin(tokens, received)))
