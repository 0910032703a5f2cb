"""What a search that was killed had found, taken up by the one after it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feddtpt_flwr.attempts import Attempt
from feddtpt_flwr.budget import BudgetExhaustedError
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.label_weights import accuracy, label_weights
from feddtpt_flwr.search_result import SearchResult
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens


@dataclass(frozen=True)
class Recovery:
    """Compares what killed searches had found with the prompt that a client was sent.

    Parameters
    ----------
    sent : Tokens
        The prompt that the client was sent.
    evaluator : Evaluator
        Knows what was paid for.
    vocabulary : Vocabulary
        Turns tokens into text.
    examples : Sequence[Example]
        By which the search judges prompts.
    """

    sent: Tokens
    evaluator: Evaluator
    vocabulary: Vocabulary
    examples: Sequence[Example]

    def start(self, interrupted: Attempt | None) -> tuple[Tokens, float | None]:
        """Return what to search from, and the accuracy of the prompt sent if that is known.

        What a killed search had found competes with it.
        """
        if interrupted is None or self.evaluator.budget.left < 2 * len(self.examples):
            return self.sent, None
        texts = [self.vocabulary.decode(prompt) for prompt in (self.sent, interrupted.tokens)]
        try:
            answers = self.evaluator.correct_all(texts, self.examples)
        except BudgetExhaustedError:
            return self.sent, None
        weights = label_weights(self.examples)
        before, other = (accuracy(correct, weights) for correct in answers)
        return (interrupted.tokens if other > before else self.sent), before

    def found(self, attempts: Iterable[Attempt | None]) -> SearchResult | None:
        """Return what killed searches had found, if that is known to beat the prompt sent.

        Nothing is asked: all of it is paid for.
        """
        first = self.evaluator.known(self.vocabulary.decode(self.sent), self.examples)
        weights, best = label_weights(self.examples), None
        for attempt in attempts:
            if first is None or attempt is None:
                continue
            before = accuracy(first, weights)
            correct = self.evaluator.known(self.vocabulary.decode(attempt.tokens), self.examples)
            after = 0.0 if correct is None else accuracy(correct, weights)
            if after > (best.accuracy if best else before):
                best = SearchResult(attempt.tokens, after, before, attempt.accepted, 0)
        return best
