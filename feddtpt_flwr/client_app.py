"""The client: a Flower NumPyClient around the prompt search."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from logging import INFO

import numpy as np
from flwr.client import Client, NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context, NDArrays, RecordDict, Scalar, log

from feddtpt_flwr import logs, models
from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.budget import BudgetExhaustedError, ClientBudget
from feddtpt_flwr.client_limits import (
    scoring_budget,
    search_budget,
    too_few_to_search,
    too_much_to_compare,
)
from feddtpt_flwr.client_report import counted, described, mismatch, refusal, unchanged, written
from feddtpt_flwr.client_state import RUN_KEY, ClientState, Kept, Phase, state_file, step
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.discretion import discretion
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_task
from feddtpt_flwr.generator import Writer
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.node import Node, NodeConfig, load_node
from feddtpt_flwr.privacy.clients import protected
from feddtpt_flwr.recovery import Recovery
from feddtpt_flwr.round_examples import RoundExamples, stream
from feddtpt_flwr.searches import Search, SearchParts, build_search
from strategies.candidates import Tokens
from strategies.wire import (
    COMPARED_KEY,
    GAIN_KEY,
    LIMIT_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SCORED_KEY,
    VOCABULARY_KEY,
    correct_key,
    read_prompt,
)


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
        Flower's client state, in which feedback and answers survive from message to message; in a
        run that has a name they also do on disk (see `client_state`).
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

    @property
    def privacy(self) -> str:
        """The run's ``privacy``, which this client by itself does not keep to."""
        return self._config.privacy

    def fit(
        self, parameters: NDArrays, config: Mapping[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Search from the global prompt; return the local one.

        If the black box fails, the local prompt is the best so far, and there is none if not even
        the global prompt could be measured. The metrics say what failed. Once a limit of the run
        leaves too little for a search, the global prompt comes back and nothing is asked.
        """
        server_round = int(config[ROUND_KEY])
        logs.add(round=server_round)
        examples = self._examples(server_round).batch
        num_examples = len(self._data.train) + len(self._public)
        if reason := mismatch(config, self._config) or too_few_to_search(
            self._config, num_examples
        ):
            return [], 0, refusal(self._name, config, reason)
        tokens = self._read(parameters)[0]
        state = self._recall(config, "search", (tokens,))
        if kept := state.reply:
            log(INFO, "client %s: the search of this round is done already", self._name)
            return [np.array(kept.tokens, dtype=np.int64)], kept.num_examples, dict(kept.metrics)
        vocabulary: dict[str, Scalar] = {VOCABULARY_KEY: self._vocabulary.fingerprint}
        self._load()
        budget = search_budget(self._config, state, len(self._to_score(config)))
        evaluator = self._evaluator(budget, state)
        recovery = Recovery(tokens, evaluator, self._vocabulary, examples)
        killed = (state.found, state.interrupted)
        # To measure the prompt sent is worth nothing if no change of it can be tried. What archives
        # know of it is charged.
        sent = self._vocabulary.decode(tokens)
        measured = evaluator.known(sent, examples, archived=False) is not None
        least = len(examples) if measured else 2 * len(examples)
        used_up = budget.left < least and budget.tightest.endswith("-per-run")
        if used_up and not recovery.found(killed):
            log(INFO, "client %s: %s is used up", self._name, budget.tightest)
            state.end(evaluator.cache)
            metrics = self._counted(config, evaluator) | unchanged(budget.tightest)
            return parameters, num_examples, metrics | vocabulary

        writer = self._writer(evaluator)
        search = self._build_search(server_round, evaluator, examples, writer)
        try:
            start, known = recovery.start(state.interrupted)
            state.begin(start)
            result = search.run(start, state.feedback)
        except ModelError as error:
            budget.tell()
            state.end(evaluator.cache)
            return [], 0, self._counted(config, evaluator, error) | self._written(writer)
        recovered = recovery.found(killed)
        if recovered and recovered.accuracy > result.accuracy:
            # A limit or a failure ended this one before it came as far as the one that was killed.
            num_trials, failure = result.num_trials, result.failure
            result = replace(recovered, num_trials=num_trials, failure=failure)
        done = f"done, {result.num_trials} changes tried"
        self._log_progress(server_round, evaluator, result.accuracy, done)
        budget.tell()
        before = result.start_accuracy if known is None else known
        local, accuracy, gain = result.tokens, result.accuracy, result.accuracy - before
        told_apart: dict[str, Scalar] = {}
        if config.get(COMPARED_KEY) and (hunch := result.hunch) and gain <= 0:
            # Its examples tell too little; those of all clients that compare may tell more.
            local, accuracy, gain = hunch.tokens, min(1.0, before + hunch.gain), hunch.gain
            told_apart = {"hunch": described([hunch.trial], self._vocabulary)}
        metrics = {
            **self._counted(config, evaluator, result.failure),
            **self._written(writer),
            **vocabulary,
            GAIN_KEY: gain,
            **({"accuracy": accuracy} if result.measured else {}),
            "trials": result.num_trials,
            "accepted": described(result.accepted, self._vocabulary),
            **told_apart,
        }
        if budget.left < len(examples) and budget.tightest:
            metrics[LIMIT_KEY] = budget.tightest
        kept = Kept((tokens,), local, num_examples, metrics)
        # One that was cut short goes on if its message comes again.
        state.end(evaluator.cache, None if result.failure else kept)
        return [np.array(local, dtype=np.int64)], num_examples, metrics

    def evaluate(
        self, parameters: NDArrays, config: Mapping[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Count every prompt's right answers on as many private examples as the server asks for.

        The examples of the round's search come first: this client has asked about them with the
        global prompt and its own. A prompt from another client has seen neither these nor the
        validation examples. Each number of them has all labels in proportion. The accuracy is the
        first prompt's. If the black box fails, or a limit of the run does not cover the counting,
        there are no counts, and the metrics say why.
        """
        logs.add(round=int(config[ROUND_KEY]))
        if reason := mismatch(config, self._config) or too_much_to_compare(
            self._config, len(parameters), config.get(RACE_EXAMPLES_KEY)
        ):
            return 1.0, 0, refusal(self._name, config, reason)
        prompts = self._read(parameters)
        examples = self._to_score(config)
        state = self._recall(config, "score", tuple(prompts))
        if kept := state.reply:
            log(INFO, "client %s: these prompts are scored already", self._name)
            return 1.0 - float(kept.metrics["accuracy"]), kept.num_examples, dict(kept.metrics)
        models.language_model(self._config)  # before its seconds are counted
        budget = scoring_budget(self._config, state, len(prompts) * len(examples))
        evaluator = self._evaluator(budget, state)
        texts = [self._vocabulary.decode(tokens) for tokens in prompts]
        try:
            correct = evaluator.correct_all(texts, examples)
        except (ModelError, BudgetExhaustedError) as error:
            budget.tell()
            state.end(evaluator.cache)
            return 1.0, 0, self._counted(config, evaluator, error)
        budget.tell()
        accuracy = float(correct[0].mean())
        metrics: dict[str, Scalar] = {
            correct_key(index): int(answers.sum()) for index, answers in enumerate(correct)
        }
        metrics |= self._counted(config, evaluator) | {
            SCORED_KEY: len(examples),
            "accuracy": accuracy,
        }
        state.end(evaluator.cache, Kept(tuple(prompts), (), len(examples), metrics))
        return 1.0 - accuracy, len(examples), metrics

    def _load(self) -> None:
        """Load what a search asks, before its seconds are counted."""
        models.language_model(self._config)
        if self._config.proposer == "prompt-generator":
            models.writing_model(self._config)

    def _build_search(
        self,
        server_round: int,
        evaluator: Evaluator,
        examples: Sequence[Example],
        writer: Writer | None,
    ) -> Search:
        parts = SearchParts(
            config=self._config,
            task=self._task,
            public=self._public,
            masked_lm=self._masked_lm,
            evaluator=evaluator,
            examples=examples,
            rng=np.random.default_rng([self._config.seed, server_round, stream(self._name)]),
            on_accept=lambda trial: self._log_progress(
                server_round, evaluator, trial.accuracy, trial.operator
            ),
            pool=[*self._data.train, *self._public],
            writer=writer,
        )
        return build_search(parts)

    def _log_progress(
        self, server_round: int, evaluator: Evaluator, accuracy: float, what: str
    ) -> None:
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

    def _examples(self, server_round: int) -> RoundExamples:
        return RoundExamples(self._name, self._data, self._public, self._config, server_round)

    def _to_score(self, config: Mapping[str, Scalar]) -> list[Example]:
        wanted = config.get(RACE_EXAMPLES_KEY)
        examples = self._examples(int(config[ROUND_KEY]))
        return examples.to_score(None if wanted is None else int(wanted))

    def _counted(
        self,
        config: Mapping[str, Scalar],
        evaluator: Evaluator,
        failure: Exception | None = None,
    ) -> dict[str, Scalar]:
        return counted(self._name, config, self._config, evaluator, failure)

    def _written(self, writer: Writer | None) -> dict[str, Scalar]:
        return {} if writer is None else written(writer, self._config)

    def _read(self, parameters: NDArrays) -> list[Tokens]:
        return [
            read_prompt(
                array,
                vocabulary_size=len(self._vocabulary),
                max_tokens=self._config.max_prompt_tokens,
            )
            for array in parameters
        ]

    def _recall(
        self, config: Mapping[str, Scalar], phase: Phase, sent: tuple[Tokens, ...] = ()
    ) -> ClientState:
        run = str(config.get(RUN_KEY, ""))
        # Who wants nothing on disk wants no trials there either.
        kept = run and self._config.cache_size_mib
        privacy = self._config.privacy
        file = state_file(cache_folder(), run, self._name, privacy) if kept else None
        return ClientState(self._state, file, step(int(config[ROUND_KEY]), phase), sent)

    def _evaluator(self, budget: ClientBudget, state: ClientState) -> Evaluator:
        store = models.answer_store(self._config)
        archives = [] if store is None else [store]  # an empty store is false
        cache = state.cache(*archives, room=budget.limit)
        return Evaluator(models.language_model(self._config), self._task, budget, cache)

    def _writer(self, evaluator: Evaluator) -> Writer | None:
        if self._config.proposer != "prompt-generator":
            return None
        settings = models.generator_settings(self._config)
        model, tariff = models.writing_model(self._config), models.tariff(settings)
        return Writer(model, tariff, evaluator.budget, evaluator.cache, chat=settings.chat)


def plain_client(node: Node, state: RecordDict) -> PromptTuningClient:
    """Build the client of ``node`` that knows nothing of the run's ``privacy``."""
    return PromptTuningClient(node.name, node.data, node.public, node.config, state)


def client_for(context: Context) -> NumPyClient:
    """Build the client of one node, simulated or deployed."""
    logs.begin(run=str(context.run_id), node=f"node-{context.node_id}")
    config = NodeConfig.read(context.run_config, context.node_config)
    node = load_node(config, context.node_id, context.run_id)
    logs.add(node=node.name)
    return protected(node, context.state, plain_client)


def client_fn(context: Context) -> Client:
    """Build the client of one node, as Flower's ``fit`` and ``evaluate`` need it."""
    return client_for(context).to_client()


app = ClientApp(client_fn=client_fn, mods=[discretion])
