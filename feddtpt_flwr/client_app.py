"""The client: a Flower NumPyClient around the prompt search."""

import json
from collections.abc import Mapping
from logging import ERROR, INFO
from typing import Any

import numpy as np
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ConfigRecord, Context, NDArrays, RecordDict, Scalar, log

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.evaluation import AnswerCache, Evaluator, QueryBudget, stratified_order
from feddtpt_flwr.experiment import load_task, readability
from feddtpt_flwr.feedback import Feedback, Trial
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.node import Node, NodeConfig, load_node
from feddtpt_flwr.privacy.clients import protected
from feddtpt_flwr.search import PromptSearch
from strategies.candidates import Tokens
from strategies.wire import (
    CLIENT_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    UNPARSED_KEY,
    VOCABULARY_KEY,
    correct_key,
    read_prompt,
)

STATE_KEY = "feddtpt"
STATE_VERSION = 1


class PromptTuningClient(NumPyClient):
    """Searches a better prompt on private examples; only tokens and counts leave it.

    Parameters
    ----------
    name : str
        How the server's history calls this client.
    data : ClientData
        Private examples.
    public : tuple[Example, ...]
        The public class-balanced set ``D_g``.
    config : RunConfig
        Settings of the run.
    state : RecordDict
        Flower's client state: feedback and answers survive in it from message to message.
    """

    def __init__(
        self,
        name: str,
        data: ClientData,
        public: tuple[Example, ...],
        config: RunConfig,
        state: RecordDict,
    ) -> None:
        self._name = name
        self._data = data
        self._public = public
        self._config = config
        self._state = state
        self._task = load_task(config)
        self._masked_lm = models.masked_lm(config, self._task)
        self._vocabulary = self._masked_lm.vocabulary

    def fit(
        self, parameters: NDArrays, config: Mapping[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Search from the global prompt; return the local one.

        If the black box fails, the local prompt is the best so far, and there is none if not even
        the global prompt could be measured. The metrics say what failed.
        """
        server_round = int(config[ROUND_KEY])
        rng = np.random.default_rng([self._config.seed, server_round, _stream(self._name)])
        examples = stratified_order([*self._data.train, *self._public], rng)
        feedback, evaluator = self._feedback(), self._evaluator(self._config.queries_per_round)

        def progress(accuracy: float, what: str) -> None:
            log(
                INFO,
                "round %d, client %s: %d of %d queries, best accuracy %.3f (%s)",
                server_round,
                self._name,
                evaluator.budget.used,
                evaluator.budget.limit,
                accuracy,
                what,
            )

        search = PromptSearch(
            evaluator,
            models.proposer(self._config, self._task, self._public),
            self._masked_lm,
            examples,
            rng,
            max_tokens=self._config.max_prompt_tokens,
            admissible=readability(self._config, self._task).each,
            on_accept=lambda trial: progress(trial.accuracy, trial.operator),
        )
        try:
            result = search.run(self._read(parameters)[0], feedback)
        except ModelError as error:
            self._save(feedback, evaluator)
            return [], 0, self._report(config, evaluator, error)
        progress(result.accuracy, f"done, {result.num_trials} changes tried")
        self._save(feedback, evaluator)
        metrics: dict[str, Scalar] = {
            **self._report(config, evaluator, result.failure),
            VOCABULARY_KEY: self._vocabulary.fingerprint,
            GAIN_KEY: result.accuracy - result.start_accuracy,
            "accuracy": result.accuracy,
            "trials": result.num_trials,
            "accepted": json.dumps([self._describe(trial) for trial in result.accepted]),
        }
        return [np.array(result.tokens, dtype=np.int64)], len(examples), metrics

    def evaluate(
        self, parameters: NDArrays, config: Mapping[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Count every prompt's right answers on all private examples of this client.

        The accuracy is the first prompt's on the validation examples, which no search sees. The
        counts, by which the server compares prompts, are over the training examples too: a prompt
        from another client has seen none of either. If the black box fails, there are no counts,
        and the metrics say what failed.
        """
        prompts = self._read(parameters)
        validation = self._data.validation
        examples = [*validation, *self._data.train]
        evaluator = self._evaluator(len(prompts) * len(examples))
        texts = [self._vocabulary.decode(tokens) for tokens in prompts]
        try:
            correct = evaluator.correct_all(texts, examples)
        except ModelError as error:
            return 1.0, 0, self._report(config, evaluator, error)
        finally:
            self._save(self._feedback(), evaluator)
        accuracy = float(correct[0][: len(validation)].mean())
        metrics: dict[str, Scalar] = {
            correct_key(index): int(answers.sum()) for index, answers in enumerate(correct)
        }
        metrics |= self._report(config, evaluator, None) | {
            SCORED_KEY: len(examples),
            "accuracy": accuracy,
        }
        return 1.0 - accuracy, len(validation), metrics

    def _report(
        self, config: Mapping[str, Scalar], evaluator: Evaluator, failure: ModelError | None
    ) -> dict[str, Scalar]:
        """Return what every answer to the server tells: who asked how much, and what went wrong."""
        report: dict[str, Scalar] = {
            CLIENT_KEY: self._name,
            ROUND_KEY: int(config[ROUND_KEY]),
            QUERIES_KEY: evaluator.budget.used,
            UNPARSED_KEY: evaluator.unparsed,
        }
        if usage := evaluator.usage:
            report |= {
                "requests": usage.requests,
                "retries": usage.retries,
                PROMPT_TOKENS_KEY: usage.prompt_tokens,
                COMPLETION_TOKENS_KEY: usage.completion_tokens,
                COST_KEY: models.prices(self._config).cost(usage),
            }
        if failure:
            log(ERROR, "client %s: %s", self._name, failure)
            report[FAILURE_KEY] = str(failure)
        return report

    def _read(self, parameters: NDArrays) -> list[Tokens]:
        return [
            read_prompt(
                array,
                vocabulary_size=len(self._vocabulary),
                max_tokens=self._config.max_prompt_tokens,
            )
            for array in parameters
        ]

    def _describe(self, trial: Trial) -> dict[str, Any]:
        return {
            "position": trial.position,
            "operator": trial.operator,
            "before": self._vocabulary.decode(trial.before),
            "after": self._vocabulary.decode(trial.after),
            "accuracy": trial.accuracy,
        }

    def _evaluator(self, budget: int) -> Evaluator:
        saved = self._saved("answers")
        store = models.answer_store(self._config)
        cache = AnswerCache.from_json(saved, store=store) if saved else AnswerCache(store=store)
        model = models.language_model(self._config)
        return Evaluator(model, self._task, QueryBudget(budget), cache)

    def _feedback(self) -> Feedback:
        saved = self._saved("feedback")
        return Feedback.from_json(saved) if saved else Feedback()

    def _saved(self, key: str) -> str | None:
        record = self._state.config_records.get(STATE_KEY)
        if record is None or record.get("version") != STATE_VERSION:
            return None
        return str(record[key])

    def _save(self, feedback: Feedback, evaluator: Evaluator) -> None:
        self._state[STATE_KEY] = ConfigRecord(
            {
                "version": STATE_VERSION,
                "feedback": feedback.to_json(),
                "answers": evaluator.cache.to_json(),
            }
        )


def _stream(name: str) -> int:
    """Return a number that gives every client its own stream of randomness."""
    return int.from_bytes(name.encode(), "big")


def plain_client(node: Node, state: RecordDict) -> PromptTuningClient:
    """Build the client of ``node`` that knows nothing of the run's ``privacy``."""
    return PromptTuningClient(node.name, node.data, node.public, node.config, state)


def client_for(context: Context) -> NumPyClient:
    """Build the client of one node, simulated or deployed."""
    config = NodeConfig.read(context.run_config, context.node_config)
    node = load_node(config, context.node_id)
    return protected(node, context.state, plain_client)


def client_fn(context: Context) -> Client:
    """Build the client of one node, as Flower's ``fit`` and ``evaluate`` need it."""
    return client_for(context).to_client()


app = ClientApp(client_fn=client_fn)
