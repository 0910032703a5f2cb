"""How good prompts are on examples that neither search nor comparison has seen."""

from collections.abc import Mapping
from dataclasses import asdict
from logging import WARNING
from typing import Any

import numpy as np
from flwr.common import log
from numpy.typing import NDArray

from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.language_model.usage import Usage
from feddtpt_flwr.statistics import Proportion, paired_difference
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens


class HeldOut:
    """Asks the black box about the test set, once for every prompt.

    Parameters
    ----------
    evaluator : Evaluator
        Asks the black box; apart from the clients' queries.
    vocabulary : Vocabulary
        Turns tokens into text.
    test : tuple[Example, ...]
        Held-out examples.
    """

    def __init__(
        self, evaluator: Evaluator, vocabulary: Vocabulary, test: tuple[Example, ...]
    ) -> None:
        self._evaluator = evaluator
        self._usage_before, self._unparsed_before = Usage(), 0
        self._vocabulary = vocabulary
        self._test = test
        self._labels = np.array([example.label for example in test])
        self._correct: dict[Tokens, NDArray[np.bool_]] = {}

    def __len__(self) -> int:
        """Return the number of held-out examples."""
        return len(self._test)

    @property
    def queries(self) -> int:
        """Queries asked so far."""
        return self._evaluator.budget.used

    @property
    def usage(self) -> Usage | None:
        """What the black box has used for them; None if it does not count."""
        used = self._evaluator.usage
        return None if used is None else self._usage_before + used

    @property
    def unparsed(self) -> int:
        """Answers that fitted no label."""
        return self._unparsed_before + self._evaluator.unparsed

    def measure(self, tokens: Tokens, when: str) -> Proportion | None:
        """Return a prompt's accuracy, or None, with a warning, if the black box fails."""
        if tokens not in self._correct:
            try:
                correct = self._evaluator.correct(self._vocabulary.decode(tokens), self._test)
            except ModelError as error:
                log(WARNING, "%s: no held-out accuracy: %s", when, error)
                return None
            self._correct[tokens] = correct
        return self.accuracy(tokens)

    def accuracy(self, tokens: Tokens) -> Proportion | None:
        """Return a prompt's accuracy if it has been measured."""
        correct = self._correct.get(tokens)
        return None if correct is None else Proportion(int(correct.sum()), len(correct))

    def balanced_accuracy(self, tokens: Tokens) -> float | None:
        """Return the mean of a prompt's accuracies on each label's examples, if it was measured."""
        if (correct := self._correct.get(tokens)) is None:
            return None
        return float(np.mean([correct[self._labels == label].mean() for label in self.per_label]))

    @property
    def per_label(self) -> Mapping[int, int]:
        """The number of examples of each label that has any."""
        labels, counts = np.unique(self._labels, return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))

    def difference(self, before: Tokens, after: Tokens) -> tuple[float, float, float] | None:
        """Return by how much one prompt is better than another, and the 95 % interval."""
        if before not in self._correct or after not in self._correct:
            return None
        return paired_difference(self._correct[before], self._correct[after])

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far, as JSON values."""
        return {
            "correct": [
                {"tokens": tokens, "correct": correct.astype(int).tolist()}
                for tokens, correct in self._correct.items()
            ],
            "held-out-queries": self.queries,
            "held-out-usage": asdict(self.usage or Usage()),
            "held-out-unparsed": self.unparsed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._correct = {
            tuple(item["tokens"]): np.array(item["correct"], dtype=np.bool_)
            for item in state["correct"]
        }
        self._evaluator.budget.used = state["held-out-queries"]
        self._usage_before = Usage(**state.get("held-out-usage", {}))
        self._unparsed_before = state.get("held-out-unparsed", 0)
