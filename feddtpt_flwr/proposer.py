"""Proposals: which change of the prompt to pay for next."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.feedback import Change, Feedback, change, site_tokens
from feddtpt_flwr.masked_lm import Fillings, Gap, MaskedLM
from strategies.candidates import Tokens
from strategies.edits import Edit

NO_REPEAT = 6
"""A token that stands so near to the gap, on either side, is not put in once more."""

MAX_PHRASE = 6
"""Most tokens that one change puts in."""

SPAN_WEIGHT = 0.6
"""How often a change takes one word more, against one of the size before."""

SHORTEST_REWORDING = 3
"""Fewest tokens of a prompt in other words, where there is room."""

QUOTE = '"'
IN_OTHER_WORDS = f"{QUOTE}\n\nParaphrase: {QUOTE}"
"""What stands between a prompt and the same in other words; a mark ends both."""

ENDS = ".?!"
"""A prompt in other words is one sentence."""

_TO_FILL = (-1,)  # stands for tokens that the masked language model has yet to choose


class NothingBetterError(Exception):
    """A proposer has given what it holds best; asked once more, it gives what it holds second best.

    A search that has changes left to try goes on with these.
    """


class Proposer(Protocol):
    """Proposes changes of a prompt, given the feedback so far."""

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return ``count`` edits of the prompt ``tokens``, not necessarily different ones.

        Raises
        ------
        NothingBetterError
            If earlier calls with the same ``feedback`` have brought all that it holds best.
        """
        ...


class MaskedLMProposer:
    """The masked language model says what fits, the feedback says where and bends the choice.

    *Where* is a bandit: each place and operator has a Beta posterior over "a change here helps",
    shrunk towards its operator's rate. A place is picked with a chance in proportion to the square
    of a draw from it, and the less the longer it is. Whether a part is changed at all, or the whole
    put in other words, is decided by Thompson sampling: the larger draw wins.
    *What* is drawn from the masked language model's distribution for the gap, each token's
    log-probability raised by what tokens of similar meaning gained when they were tried.

    Parameters
    ----------
    masked_lm : MaskedLM
        Fills the gap.
    max_tokens : int
        Longest prompt, in tokens.
    use_feedback : bool
        Off is the paper's ablation: any place, tokens by the language model alone.
    temperature : float
        Flattens (above 1) or sharpens the language model's distribution.
    feedback_strength : float
        How many nats of log-probability a gain of one answer in ten is worth.
    max_span : int
        Most words that one change replaces or deletes.
    phrase_probability : float
        How often, at least, another token follows one that was put in.
    reword : bool
        Whether the whole prompt in other words is proposed as well.
    """

    def __init__(
        self,
        masked_lm: MaskedLM,
        *,
        max_tokens: int,
        use_feedback: bool = True,
        temperature: float = 0.8,
        feedback_strength: float = 1.0,
        max_span: int = 8,
        phrase_probability: float = 0.25,
        reword: bool = True,
    ) -> None:
        self._masked_lm = masked_lm
        self._max_tokens = max_tokens
        self._use_feedback = use_feedback
        self._temperature = temperature
        self._strength = feedback_strength
        self._max_span = max_span
        self._phrase = phrase_probability
        self._reword = reword
        self._opening = masked_lm.vocabulary.encode(QUOTE)
        self._closing, self._bridge = (self._attached(mark) for mark in (QUOTE, IN_OTHER_WORDS))
        self._ends = tuple(self._attached(mark)[0] for mark in ENDS)

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return ``count`` edits of the prompt ``tokens``, not necessarily different ones."""
        whole = [self._chooses_rewording(feedback, rng) for _ in range(count)]
        everything = Edit(0, len(tokens), _TO_FILL)
        sites = [
            everything if rewords else self._choose_site(tokens, feedback, rng) for rewords in whole
        ]
        return self._fill(sites, whole, tokens, feedback, rng)

    def _chooses_rewording(self, feedback: Feedback, rng: np.random.Generator) -> bool:
        """Choose between the whole and a part: by Thompson sampling, once there is experience."""
        if not self._reword:
            return False
        won, lost = [0, 0], [0, 0]
        if self._use_feedback:
            for (operator, _), (successes, failures) in feedback.site_counts().items():
                won[operator == "rewrite"] += successes
                lost[operator == "rewrite"] += failures
        part, rewording = (rng.beta(1 + w, 5 + n) for w, n in zip(won, lost, strict=True))
        return bool(rewording > part)

    def _fill(
        self,
        sites: Sequence[Edit],
        whole: Sequence[bool],
        tokens: Tokens,
        feedback: Feedback,
        rng: np.random.Generator,
    ) -> list[Edit]:
        """Let the masked language model choose what each site puts in, token by token.

        All sites grow in the same passes: a pass over few tokens costs hardly less. To put the
        ``whole`` in other words, it reads the whole before, and goes on to the end of a sentence.
        """
        lengths = [
            self._draw_rewording(tokens, rng) if rewords else self._draw_length(site, tokens, rng)
            for site, rewords in zip(sites, whole, strict=True)
        ]
        edits = [replace(site, tokens=()) for site in sites]
        numbers = range(len(edits))
        while growing := [
            i
            for i in numbers
            if len(edits[i].tokens) < lengths[i]
            and not (whole[i] and set(edits[i].tokens[-1:]) & set(self._ends))
        ]:
            # A last token is also weighed by what follows, in a pass of its own: one for all sites.
            earlier = [i for i in growing if len(edits[i].tokens) < lengths[i] - 1]
            growing = earlier or growing
            gaps = [self._gap(edits[i], tokens, lengths[i], whole[i]) for i in growing]
            for i, fillings in zip(growing, self._masked_lm.fill(gaps), strict=True):
                # Language models find nothing likelier than what they have just read.
                left, right = edits[i].around(tokens)
                avoid = (*left[-NO_REPEAT:], *right[:NO_REPEAT])
                if not whole[i]:  # other words for the same may be some of the old ones
                    avoid += tokens[edits[i].start : edits[i].stop]
                elif len(edits[i].tokens) < SHORTEST_REWORDING - 1:
                    avoid += self._ends
                token = self._choose_token(fillings, avoid, feedback, rng)
                edits[i] = replace(edits[i], tokens=(*edits[i].tokens, token))
        return edits

    def _draw_rewording(self, tokens: Tokens, rng: np.random.Generator) -> int:
        """Draw how many tokens the whole in other words has at most."""
        longest = min(self._max_tokens, max(len(tokens), MAX_PHRASE))
        return int(rng.integers(min(SHORTEST_REWORDING, longest), longest + 1))

    def _draw_length(self, site: Edit, tokens: Tokens, rng: np.random.Generator) -> int:
        """Draw how many tokens to put in; long spans are rewritten by phrases."""
        if site.operator == "delete":
            return 0
        room = self._max_tokens - (len(tokens) - (site.stop - site.start))
        words = len(self._masked_lm.vocabulary.words(tokens[site.start : site.stop]))
        go_on = max(1 - 1 / (1 + words), self._phrase)
        return int(min(rng.geometric(1 - go_on), room, MAX_PHRASE))

    def _sites(self, tokens: Tokens) -> list[tuple[Edit, float]]:
        """Return every place that a change may go to, and its weight before any feedback."""
        words = self._masked_lm.vocabulary.words(tokens)
        sites: list[tuple[Edit, float]] = []
        for first in range(len(words)):
            for last in range(first, min(first + self._max_span, len(words))):
                start, stop = words[first][0], words[last][1]
                weight = SPAN_WEIGHT ** (last - first)
                sites.append((Edit(start, stop, _TO_FILL), weight))
                if stop - start < len(tokens):
                    sites.append((Edit(start, stop, ()), weight))
        if len(tokens) < self._max_tokens:
            gaps = [start for start, _ in words] + [len(tokens)]
            sites += [(Edit(gap, gap, _TO_FILL), 1.0) for gap in gaps]
        return sites

    def _gap(self, edit: Edit, tokens: Tokens, length: int, reword: bool) -> Gap:
        """Return what stands on either side of the next of ``length`` tokens that an edit puts in.

        What follows the edit is only shown when nothing else will come in between.
        """
        left, right = edit.around(tokens)
        if reword:
            left, right = (*self._opening, *tokens, *self._bridge, *left), self._closing
        return left, right if len(edit.tokens) == length - 1 else ()

    def _attached(self, mark: str) -> Tokens:
        """Return the tokens of a mark that follows a word without a space."""
        encode = self._masked_lm.vocabulary.encode
        return encode(f"a{mark}")[len(encode("a")) :]

    def _choose_site(self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator) -> Edit:
        sites = self._sites(tokens)
        weights = np.array([weight for _, weight in sites])
        if self._use_feedback:
            edits = [edit for edit, _ in sites]
            weights = weights * self._beliefs(tokens, edits, feedback, rng) ** 2
        return sites[int(rng.choice(len(sites), p=weights / weights.sum()))][0]

    def _beliefs(
        self, tokens: Tokens, sites: list[Edit], feedback: Feedback, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw for each place how likely a change there helps, from its Beta posterior."""
        counts = feedback.site_counts()
        won: Counter[Change] = Counter()
        lost: Counter[Change] = Counter()
        for (operator, _), (successes, failures) in counts.items():
            won[operator] += successes
            lost[operator] += failures
        draws = []
        for edit in sites:
            operator = change(edit, tokens)
            rate = (won[operator] + 1) / (won[operator] + lost[operator] + 6)
            successes, failures = counts.get((operator, site_tokens(edit, tokens)), (0, 0))
            draws.append(rng.beta(3 * rate + successes, 3 * (1 - rate) + failures))
        return np.array(draws)

    def _choose_token(
        self, fillings: Fillings, avoid: Tokens, feedback: Feedback, rng: np.random.Generator
    ) -> int:
        scores = fillings.log_probs / self._temperature
        if self._use_feedback:
            scores = scores + self._strength * self._token_bonus(fillings.tokens, feedback)
        scores = np.where(np.isin(fillings.tokens, avoid), -np.inf, scores)
        # Adding Gumbel noise and taking the best is sampling from the softmax of the scores.
        return int(fillings.tokens[np.argmax(scores + rng.gumbel(size=len(scores)))])

    def _token_bonus(self, tokens: NDArray[np.int64], feedback: Feedback) -> NDArray[np.float64]:
        """Return the smoothed gain of each token's neighbours in meaning, in answers in ten."""
        tried, gains = feedback.token_gains()
        if not len(tried):
            return np.zeros(len(tokens))
        embeddings = self._masked_lm.token_embeddings
        if embeddings is None:  # then a token tells nothing about others
            kernel = (tokens[:, None] == tried[None, :]).astype(np.float64)
        else:
            cosine = embeddings[tokens] @ embeddings[tried].T
            kernel = np.exp((cosine - 1) / 0.15).astype(np.float64)
        bonus: NDArray[np.float64] = 10 * (kernel @ gains) / (kernel.sum(1) + 1.0)
        return bonus
