"""The client of ``privacy = "exponential"``: what it tells of its examples is drawn or noised."""

from collections.abc import Callable, Mapping
from logging import ERROR, WARNING

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, RecordDict, Scalar, log

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_limits import Sizes, too_few_queries, too_much_to_compare
from feddtpt_flwr.client_report import mismatch, refusal
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.experiment import load_task, readability
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.node import Node
from feddtpt_flwr.privacy import exponential
from feddtpt_flwr.privacy.ledger import SPENT, Ledger, LedgerError, Phase, StateLedger
from feddtpt_flwr.proposer import MaskedLMProposer
from strategies.wire import (
    CLIENT_KEY,
    FAILURE_KEY,
    MODEL_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    correct_key,
    read_prompt,
)

Metrics = dict[str, Scalar]


class ExponentialClient(NumPyClient):
    """Tells nothing of its examples but a drawn choice and noised counts.

    What is told is listed here, key by key; all else that the plain client would tell, such as
    gains, accepted changes, answers that fitted no label, tokens or costs, depends on the examples.
    The number of queries is the planned one: how many were in a cache is not told either. A phase
    is booked before its first question about a private example: even that a question fails may
    depend on the example, and nobody can have it asked again.
    """

    def __init__(self, node: Node, state: RecordDict, client: NumPyClient) -> None:
        self._node = node
        self._client = client
        self._shares = exponential.shares(node.config.epsilon, guard=node.config.guard)
        self._ledger = _ledger(node, state)

    def fit(self, parameters: NDArrays, config: Metrics) -> tuple[NDArrays, int, Metrics]:
        """Draw one of some prompts that were found without private examples."""
        told, run, private = self._about(config), self._node.config, self._node.data.train
        if reason := mismatch(config, run) or too_few_queries(
            run, Sizes.of(self._node.data, self._node.public)
        ):
            return [], 0, refusal(self._node.name, config, reason)
        if reason := self._refusal("search", told):
            return [], 0, told | {QUERIES_KEY: 0, FAILURE_KEY: reason}
        task = load_task(run)
        masked_lm = models.masked_lm(run, task)
        vocabulary = masked_lm.vocabulary
        start = read_prompt(
            parameters[0], vocabulary_size=len(vocabulary), max_tokens=run.max_prompt_tokens
        )
        store = models.answer_store(run)
        evaluator = Evaluator(
            models.language_model(run),
            task,
            QueryBudget(run.queries_per_round),
            AnswerCache(archives=() if store is None else (store,)),
        )
        rng = np.random.default_rng([run.seed, int(told[ROUND_KEY]), *self._node.name.encode()])
        try:
            candidates = exponential.public_candidates(
                start,
                MaskedLMProposer(
                    masked_lm,
                    max_tokens=run.max_prompt_tokens,
                    use_feedback=False,
                    reword=run.reword,
                ),
                evaluator,
                vocabulary,
                self._node.public,
                rng,
                num_private=len(private),
                max_tokens=run.max_prompt_tokens,
                admissible=readability(run, task).each,
            )
        except ModelError as error:
            return [], 0, self._failed(told, error)
        asked = evaluator.budget.used
        texts = [vocabulary.decode(tokens) for tokens in candidates]
        if reason := self._book("search", told):
            return [], 0, told | {QUERIES_KEY: asked, FAILURE_KEY: reason}
        try:
            correct = evaluator.correct_all(texts, private).sum(axis=1)
        except Exception as error:  # whatever it is: its message may tell of an example
            return [], 0, self._failed(told, error)
        drawn = candidates[exponential.choose(correct.tolist(), self._shares[0])]
        told |= {
            QUERIES_KEY: asked + len(candidates) * len(private),
            VOCABULARY_KEY: vocabulary.fingerprint,
            "candidates": len(candidates),
        }
        return [np.array(drawn, dtype=np.int64)], len(private), told

    def evaluate(self, parameters: NDArrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Count every prompt's right answers on all private examples, and add noise."""
        told = self._about(config)
        run = self._node.config
        if reason := mismatch(config, run) or too_much_to_compare(run, len(parameters), None):
            return 1.0, 0, refusal(self._node.name, config, reason)
        # All examples, however few the server asks for: the noise does not grow with them.
        every = {key: value for key, value in config.items() if key != RACE_EXAMPLES_KEY}
        if reason := SPENT if not self._shares[1] else self._book("score", told):
            return 1.0, 0, told | {QUERIES_KEY: 0, FAILURE_KEY: reason}
        try:
            _, num_examples, exact = self._client.evaluate(parameters, every)
        except Exception as error:  # as in a search
            return 1.0, 0, self._failed(told, error)
        if FAILURE_KEY in exact:
            return 1.0, 0, self._failed(told, exact[FAILURE_KEY])
        total = int(exact[SCORED_KEY])
        correct = [int(exact[correct_key(index)]) for index in range(len(parameters))]
        counts = exponential.noised(correct, total, self._shares[1])
        accuracy = counts[0] / total
        told |= {correct_key(index): count for index, count in enumerate(counts)}
        told |= {SCORED_KEY: total, "accuracy": accuracy, QUERIES_KEY: total * len(parameters)}
        return 1 - accuracy, num_examples, told

    def _about(self, config: Mapping[str, Scalar]) -> Metrics:
        return {
            CLIENT_KEY: self._node.name,
            ROUND_KEY: int(config[ROUND_KEY]),
            MODEL_KEY: models.black_box(self._node.config),
        }

    def _refusal(self, phase: Phase, told: Metrics) -> str:
        """Return why no answer may be given, if none may, before anything is asked."""
        return self._of_ledger(lambda: self._ledger.refusal(phase, int(told[ROUND_KEY])))

    def _book(self, phase: Phase, told: Metrics) -> str:
        """Book an answer, or return why none may be given."""
        return self._of_ledger(lambda: self._ledger.book(phase, int(told[ROUND_KEY])))

    def _of_ledger(self, look: Callable[[], str]) -> str:
        try:
            reason = look()
        except LedgerError as error:
            log(ERROR, "client %s: %s", self._node.name, error)
            return "this node's epsilon-ledger cannot be used; its own log says why"
        if reason:
            log(WARNING, "client %s answers nothing: %s", self._node.name, reason)
        return reason

    def _failed(self, told: Metrics, error: object) -> Metrics:
        log(ERROR, "client %s: %s", self._node.name, error)
        return told | {QUERIES_KEY: 0, FAILURE_KEY: "the language model did not answer"}


def _ledger(node: Node, state: RecordDict) -> Ledger:
    """Return the ledger of a client, on disk if its examples are its own."""
    if node.ledger is None:
        return StateLedger(state, node.config.num_server_rounds)
    return exponential.ledger_on_disk(node.ledger, node.config)
