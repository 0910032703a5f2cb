"""Searches and comparisons on answers that were given once.

The black box is asked once about many changes of a prompt, on many examples. Then clients are drawn
from these answers, over and over. Each search and each comparison is the real one, only its answers
come from the record: so a rule is judged by hundreds of draws, at the price of none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_limits import batch_size
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_data, load_task, readability, seed_tokens
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.language_model import LanguageModel
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.proposer import MaskedLMProposer, Proposer
from feddtpt_flwr.search import PromptSearch
from feddtpt_flwr.search_result import SearchResult
from strategies.by_model import Count, compared_by
from strategies.candidates import LocalPrompt, Score, Tokens, choose, propose_candidates, tally
from strategies.edits import Edit

SEED = 200
"""Of no other table here; some of its sentences are among those of other seeds."""

NUM_CLIENTS = 10
PUBLIC, TRAIN, VALIDATION = 16, 32, 32  # examples, as by default with two labels


@dataclass(frozen=True)
class Plan:
    """What a round of a federation asks.

    Attributes
    ----------
    queries : int
        Of each client's search.
    examples : int
        By how many a search judges, the public ones among them.
    compared : int
        On how many examples of all clients together each candidate is tried; 0 takes the upload
        that gained most by its own client's count.
    """

    queries: int
    examples: int
    compared: int

    @property
    def private(self) -> int:
        """How many of a search's examples are private."""
        return round(self.examples * TRAIN / (TRAIN + PUBLIC))


@dataclass(frozen=True)
class Recording:
    """Answers about a prompt and changes of it.

    Attributes
    ----------
    parent : Tokens
        The prompt.
    examples : tuple[Example, ...]
        What was asked about.
    edits : tuple[Edit, ...]
        Its changes, each to another prompt.
    correct : NDArray[np.bool_]
        Which examples the prompt (first row) and each changed one answer correctly, shape
        ``(1 + changes, examples)``.
    """

    parent: Tokens
    examples: tuple[Example, ...]
    edits: tuple[Edit, ...]
    correct: NDArray[np.bool_]

    @property
    def rows(self) -> dict[Tokens, int]:
        """Each prompt's row."""
        prompts = [self.parent, *(edit.apply(self.parent) for edit in self.edits)]
        return {prompt: row for row, prompt in enumerate(prompts)}


class RecordedAnswers:
    """Answers of a language model that it gave before; asked something else, it fails."""

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._answers: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name of the model that gave them."""
        return self._model.name

    def record(self, queries: Sequence[str], choices: Sequence[str]) -> None:
        """Ask the model."""
        self._answers |= zip(queries, self._model.answer(queries, choices), strict=True)

    def answer(self, queries: Sequence[str], choices: Sequence[str]) -> list[str]:
        """Return what the model answered."""
        return [self._answers[query] for query in queries]


class InRandomOrder:
    """A proposer of recorded changes, each once; of another prompt it knows none."""

    def __init__(self, recording: Recording, rng: np.random.Generator) -> None:
        self._parent = recording.parent
        self._left = [recording.edits[i] for i in rng.permutation(len(recording.edits))]

    def propose(
        self, tokens: Tokens, feedback: Feedback, rng: np.random.Generator, count: int
    ) -> list[Edit]:
        """Return the next ``count``, or as many as are left."""
        if tokens != self._parent:
            return []
        proposed, self._left = self._left[:count], self._left[count:]
        return proposed


class Replay:
    """A task, its models, and held-out examples with which everything is recorded.

    Parameters
    ----------
    num_examples : int
        Examples that each change is asked about, enough for a client's own and as many others.
    config : RunConfig
        Settings of the run.

    Attributes
    ----------
    first, second : tuple[Example, ...]
        So many examples each. What is chosen by the first is judged by the second: the best of many
        changes looks better than it is on the examples that it was chosen by.
    """

    def __init__(self, num_examples: int, config: RunConfig) -> None:
        self._config = config.model_copy(update={"seed": SEED, "test_size": 2 * num_examples})
        self._task: Task = load_task(self._config)
        self._masked_lm: MaskedLM = models.masked_lm(self._config, self._task)
        test = load_data(self._config, 1).test
        self.first, self.second = test[:num_examples], test[num_examples:]
        self._answers = RecordedAnswers(models.language_model(self._config))

    @property
    def token_embeddings(self) -> NDArray[np.float32]:
        """Where each token lies in meaning, unit rows ``(vocabulary, d)``."""
        return cast("NDArray[np.float32]", self._masked_lm.token_embeddings)  # it has some

    @property
    def batch(self) -> int:
        """By how many examples a client's search judges."""
        return batch_size(self._config, TRAIN + PUBLIC)

    @property
    def seed_prompt(self) -> Tokens:
        """The task's seed prompt."""
        return seed_tokens(self._config, self._task, self._masked_lm.vocabulary)

    def text(self, tokens: Tokens) -> str:
        """Return a prompt's text."""
        return self._masked_lm.vocabulary.decode(tokens)

    def record(self, parent: Tokens, num_changes: int, examples: tuple[Example, ...]) -> Recording:
        """Ask about a prompt and readable changes of it, as a search without feedback tries."""
        longest = self._config.max_prompt_tokens
        readable = readability(self._config, self._task)
        proposer = MaskedLMProposer(self._masked_lm, max_tokens=longest)
        rng = np.random.default_rng(SEED)
        changes: dict[Tokens, Edit] = {}
        while len(changes) < num_changes:
            for edit in proposer.propose(parent, Feedback(), rng, 8):
                changed = edit.apply(parent)
                if 1 <= len(changed) <= longest and changed != parent and readable(changed):
                    changes.setdefault(changed, edit)
        edits = tuple(changes.values())[:num_changes]
        texts = [self.text(tokens) for tokens in (parent, *list(changes)[:num_changes])]
        for text in texts:
            queries = [self._task.compose(text, example.input) for example in examples]
            self._answers.record(queries, self._task.answers)
        everything = QueryBudget(len(texts) * len(examples))
        correct = self._evaluator(everything).correct_all(texts, examples)
        return Recording(parent, examples, edits, correct)

    def search(
        self,
        recording: Recording,
        own: NDArray[np.int64],
        rng: np.random.Generator,
        differs: Mapping[str, Any],
        queries: int,
        proposer: Proposer | None = None,
        feedback: Feedback | None = None,
    ) -> tuple[SearchResult, int]:
        """Let one client search on the examples of these indices; return its queries as well."""
        budget, rows = QueryBudget(queries), recording.rows
        search = PromptSearch(
            self._evaluator(budget),
            proposer or InRandomOrder(recording, rng),
            self._masked_lm,
            [recording.examples[i] for i in own],
            rng,
            max_tokens=self._config.max_prompt_tokens,
            # Changes that wait are made of the changed prompt as well; of that nothing is recorded.
            admissible=lambda prompts: [prompt in rows for prompt in prompts],
            **differs,
        )
        return search.run(recording.parent, feedback or Feedback()), budget.used

    def one_client(
        self, recording: Recording, draws: int, differs: Mapping[str, Any]
    ) -> dict[str, float]:
        """Return what a client's search is worth on the examples that it has not seen.

        Returns
        -------
        dict[str, float]
            ``gain`` in accuracy; ``changed``, how often the prompt was changed; ``worse``, how
            often a change was for the worse; ``queries``.
        """
        rows, gains, queries = recording.rows, [], []
        for draw in range(draws):
            rng = np.random.default_rng([SEED, draw])
            own, others = np.split(rng.permutation(len(recording.examples)), [self.batch])
            limit = self._config.queries_per_round
            result, asked = self.search(recording, own, rng, differs, limit)
            accuracy = recording.correct[:, others].mean(1)
            gains.append(accuracy[rows[result.tokens]] - accuracy[0] if result.accepted else np.nan)
            queries.append(asked)
        changed = np.array(gains)[~np.isnan(gains)]
        return {
            "gain": round(float(changed.sum()) / draws, 4),
            "changed": round(len(changed) / draws, 3),
            "worse": round(float((changed < 0).mean()), 3) if len(changed) else 0.0,
            "queries": round(float(np.mean(queries))),
        }

    def federation(self, recording: Recording, draws: int, plan: Plan) -> dict[str, float]:
        """Return what a round is worth: ``gain`` in accuracy and ``queries``.

        The clients' examples are drawn from three fifths of all, the accuracy is that on the rest.
        """
        rows, gains, queries = recording.rows, [], []
        for draw in range(draws):
            rng = np.random.default_rng([SEED, draw])
            order = rng.permutation(len(recording.examples))
            theirs, held_out = np.split(order, [3 * len(order) // 5])
            public, private = theirs[: plan.examples - plan.private], theirs[PUBLIC:]
            own = [rng.permutation(private)[: TRAIN + VALIDATION] for _ in range(NUM_CLIENTS)]
            found = [
                self.search(
                    recording,
                    np.concatenate([mine[: plan.private], public]),
                    rng,
                    {},
                    plan.queries,
                )
                for mine in own
            ]
            results = [result for result, _ in found]
            tokens, asked = _compare(recording, own, results, plan, self._config.race_candidates)
            accuracy = recording.correct[:, held_out].mean(1)
            gains.append(accuracy[rows[tokens]] - accuracy[0])
            queries.append(asked + sum(used for _, used in found))
        return {
            "gain": round(float(np.mean(gains)), 4),
            "queries": round(float(np.mean(queries))),
        }

    def _evaluator(self, budget: QueryBudget) -> Evaluator:
        return Evaluator(self._answers, self._task, budget)


def _compare(
    recording: Recording,
    own: Sequence[NDArray[np.int64]],
    found: Sequence[SearchResult],
    plan: Plan,
    candidates: int,
) -> tuple[Tokens, int]:
    """Return the prompt that is chosen, and the questions that are new to a client."""
    rows = recording.rows
    uploads = [
        LocalPrompt(str(k), result.hunch.tokens, result.hunch.gain)
        if result.hunch and plan.compared
        else LocalPrompt(str(k), result.tokens, result.accuracy - result.start_accuracy)
        for k, result in enumerate(found)
    ]
    if not plan.compared:
        return max(uploads, key=lambda upload: upload.gain).tokens, 0
    compared = propose_candidates(
        recording.parent,
        uploads,
        None,
        limit=candidates,
        max_tokens=10**6,
        admissible=rows.__contains__,  # there are no answers about merges
    )
    if len(compared) == 1:
        return recording.parent, 0
    share = min(-(-plan.compared // len(own)), TRAIN + VALIDATION)
    counts, asked = [], 0
    for mine, result in zip(own, found, strict=True):
        scored = mine[:share]
        right = {c.tokens: int(recording.correct[rows[c.tokens], scored].sum()) for c in compared}
        counts.append({tokens: Score(correct, share) for tokens, correct in right.items()})
        known = {recording.parent, result.tokens}  # a hunch is known on some examples only
        asked += sum(
            max(0, share - plan.private) if candidate.tokens in known else share
            for candidate in compared
        )
    said = compared_by([Count("", count) for count in counts], "mean")
    return choose(compared, said, tally(counts))[0].tokens, asked
