"""Black-box discrete prompt learning by policy gradient (BDPL, arXiv 2201.08531).

It is also the client of FedOne (arXiv 2506.14929).
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from logging import WARNING, getLogger
from math import log

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.budget import BudgetExhaustedError
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.evidence import Measured
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.search import require
from feddtpt_flwr.search_result import SearchResult
from feddtpt_flwr.vocabulary import Vocabulary, letters
from strategies.candidates import Tokens

MOST_IDLE = 100
"""Steps in a row in which every answer was known. A policy that has settled draws the same prompts
for ever, and they cost nothing."""

FEWEST_STEPS = 2
"""Where the budget is small, a step draws fewer prompts, two at least, so that so many fit."""

COMPARING_SHARE = 0.25
"""How much of the budget, at least, is for comparing prompts on all examples in the end."""

Floats = NDArray[np.float64]

_log = getLogger("flwr")


class PolicyGradientSearch:
    """Learns for every word of the prompt a distribution over a small vocabulary.

    In each step several prompts are drawn and measured on one batch; a word's log-odds rise with
    the accuracy of the prompts that have it, less the mean of the step (the paper's
    variance-reduced policy gradient, here in the parametrisation by a softmax that FedOne uses).
    The vocabulary are the commonest n-grams of the examples, joined where their pointwise mutual
    information is above zero. In the end the most likely prompt and the drawn ones that did best
    on their batch are measured on all examples, and the best of these and of the start is kept.

    Four things differ from the papers. The loss is one minus accuracy, as a black box gives no
    probabilities. A distribution starts around the prompt that the server sent, not uniform: half
    the words of a draw are its words. The papers keep the distribution that validates best out of
    thousands of queries; with a client's few, most is gained by validating what was drawn, and a
    step is so long that the distribution moves at all. And what travels, to the server and from
    round to round, is a prompt: FedOne's server averages the clients' distributions, and here each
    round's begin anew around the server's prompt. The step length and the shares were chosen on
    made-up answers. It also stops when every answer is right, as this app's search does.

    Parameters
    ----------
    evaluator : Evaluator
        Asks the black box; its budget ends the search.
    vocabulary : Vocabulary
        Turns tokens into text and words.
    examples : Sequence[Example]
        Private batch and public set together.
    rng : numpy.random.Generator
        Source of all randomness.
    max_tokens : int
        Longest prompt, in tokens.
    excluded_words : tuple[str, ...]
        Words that are not in the vocabulary; the answer words, for instance.
    corpus : Sequence[Example], optional
        Where the vocabulary comes from; by default ``examples``.
    num_ngrams : int
        Size of the vocabulary, at least 1.
    samples, batch : int
        Prompts drawn in each step at most, at least 2, and examples that each is measured on, at
        least 1.
    step_size : float
        What a gradient is multiplied by, above 0.
    start_probability : float
        Probability of each word of the start at the beginning, in (0, 1).
    """

    def __init__(
        self,
        evaluator: Evaluator,
        vocabulary: Vocabulary,
        examples: Sequence[Example],
        rng: np.random.Generator,
        *,
        max_tokens: int,
        excluded_words: tuple[str, ...] = (),
        corpus: Sequence[Example] | None = None,
        num_ngrams: int = 100,
        samples: int = 8,
        batch: int = 8,
        step_size: float = 32.0,
        start_probability: float = 0.5,
    ) -> None:
        require("num_ngrams", num_ngrams, "at least 1", allowed=num_ngrams >= 1)
        require("samples", samples, "at least 2", allowed=samples >= 2)
        require("batch", batch, "at least 1", allowed=batch >= 1)
        require("step_size", step_size, "above 0", allowed=step_size > 0)
        require(
            "start_probability",
            start_probability,
            "above 0 and below 1",
            allowed=0 < start_probability < 1,
        )
        self._evaluator = evaluator
        self._vocabulary = vocabulary
        self._examples = examples
        self._rng = rng
        self._max_tokens = max_tokens
        self._samples = samples
        self._batch = min(batch, len(examples))
        self._step_size = step_size
        self._start_probability = start_probability
        texts = examples if corpus is None else corpus
        self._ngrams = ngram_vocabulary(texts, vocabulary, num_ngrams, excluded_words)
        if not self._ngrams:
            _log.log(
                WARNING,
                "search = 'bdpl': no word of the examples is one token that may be proposed, so "
                "that there is nothing to try",
            )

    def run(self, start: Tokens, feedback: Feedback) -> SearchResult:
        """Search from ``start`` until the budget is used up; ``feedback`` stays as it is.

        The result is never worse than ``start`` on the examples.

        Raises
        ------
        ModelError
            If the black box fails before ``start`` is measured.
        """
        try:
            best = first = self._measure(start)
        except BudgetExhaustedError:
            return SearchResult(start, 0.0, 0.0, (), 0, measured=False)
        words = [start[a:b] for a, b in self._vocabulary.words(start)]
        choices = [(word, *(n for n in self._ngrams if n != word)) for word in words]
        others = log((1 - self._start_probability) / self._start_probability)
        logits = [np.full(len(c), others - log(max(len(c) - 1, 1))) for c in choices]
        for row in logits:
            row[0] = 0.0
        drawn: dict[Tokens, float] = {}
        num_trials, failure = 0, None
        budget, num_examples = self._evaluator.budget, len(self._examples)
        reserve = max(num_examples, COMPARING_SHARE * budget.left)
        affordable = int((budget.left - reserve) // (FEWEST_STEPS * self._batch))
        samples = max(2, min(self._samples, affordable))
        try:
            idle = 0
            while (
                budget.left >= samples * self._batch + reserve
                and self._ngrams
                and not first.correct.all()
                and idle < MOST_IDLE
            ):
                before = budget.used
                self._step(choices, logits, drawn, samples)
                num_trials += samples
                idle = 0 if budget.used > before else idle + 1
            likely = self._compose(choices, [int(row.argmax()) for row in logits])
            # Of equals the last comes first: the policy had learned more.
            newest = list(reversed(drawn))
            ranked = sorted(newest, key=lambda tokens: -drawn[tokens])
            for tokens in dict.fromkeys([likely, *ranked]):
                known = self._batch if tokens in drawn else 0
                if budget.left < num_examples - known:
                    break
                best = max(best, self._measure(tokens), key=lambda p: p.accuracy)
        except ModelError as error:
            failure = error
        except BudgetExhaustedError:
            pass  # answers cost more than those before them
        return SearchResult(best.tokens, best.accuracy, first.accuracy, (), num_trials, failure)

    def _step(
        self,
        choices: Sequence[tuple[Tokens, ...]],
        logits: Sequence[Floats],
        drawn: dict[Tokens, float],
        samples: int,
    ) -> None:
        """Draw so many prompts, measure them on one batch, and move ``logits`` along the gradient.

        What each prompt's accuracy was goes to ``drawn``, the last at the end.
        """
        probabilities = [softmax(row) for row in logits]
        picks = np.array([self._rng.choice(len(p), samples, p=p) for p in probabilities]).T
        prompts = [self._compose(choices, row) for row in picks.tolist()]
        texts = [self._vocabulary.decode(tokens) for tokens in prompts]
        chosen = self._rng.choice(len(self._examples), self._batch, replace=False)
        correct = self._evaluator.correct_all(texts, [self._examples[i] for i in chosen])
        rewards = correct.mean(axis=1)
        advantages = self._step_size * (rewards - rewards.mean()) / (samples - 1)
        for row, column in zip(logits, picks.T, strict=True):
            # The gradient of a log-softmax is the indicator of what was drawn, less its
            # probability; as the advantages sum to zero, the probabilities cancel out.
            np.add.at(row, column, advantages)
            row -= row.max()
        for tokens, reward in zip(prompts, rewards.tolist(), strict=True):
            drawn.pop(tokens, None)
            drawn[tokens] = reward

    def _compose(self, choices: Sequence[tuple[Tokens, ...]], picks: Sequence[int]) -> Tokens:
        parts = (options[pick] for options, pick in zip(choices, picks, strict=True))
        return tuple(token for part in parts for token in part)[: self._max_tokens]

    def _measure(self, tokens: Tokens) -> Measured:
        text = self._vocabulary.decode(tokens)
        return Measured(tokens, self._evaluator.correct(text, self._examples))


def softmax(logits: Floats) -> Floats:
    """Return the probabilities that ``logits``, shape ``(n,)``, stand for."""
    shares: Floats = np.exp(logits - logits.max())
    shares /= shares.sum()
    return shares


def ngram_vocabulary(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    size: int,
    excluded_words: tuple[str, ...] = (),
) -> list[Tokens]:
    """Return the commonest n-grams of the examples' words, most frequent first.

    A text is cut between two words whose pointwise mutual information is not above zero (BDPL,
    section 3.1). An n-gram counts only if every word is one token that may be proposed.

    Parameters
    ----------
    examples : Sequence[Example]
        Whose words.
    vocabulary : Vocabulary
        Says which words are tokens.
    size : int
        Most n-grams.
    excluded_words : tuple[str, ...]
        Words that no n-gram holds.
    """
    texts = [letters(example.input) for example in examples]
    words = Counter(word for text in texts for word in text)
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    num_words, num_pairs = sum(words.values()), sum(pairs.values())
    allowed = vocabulary.proposable(excluded_words)
    counts: Counter[Tokens] = Counter()
    for text in texts:
        ngram: list[str] = []
        for word in text:
            if ngram:
                together = pairs[ngram[-1], word] / num_pairs
                apart = words[ngram[-1]] / num_words * (words[word] / num_words)
                # A pair seen once says nothing about its words.
                if pairs[ngram[-1], word] < 2 or log(together / apart) <= 0:
                    counts[vocabulary.encode(" ".join(ngram))] += 1
                    ngram = []
            ngram.append(word)
        if ngram:
            counts[vocabulary.encode(" ".join(ngram))] += 1
    ranked = sorted(counts, key=lambda n: (-counts[n], n))
    return [ngram for ngram in ranked if all(allowed[token] for token in ngram)][:size]
