"""The client of a run's ``privacy``: the plain one inside, and what it may tell others outside."""

import json
from collections.abc import Callable
from dataclasses import replace
from logging import ERROR, INFO

import numpy as np
from flwr.client import NumPyClient
from flwr.common import ConfigRecord, NDArrays, RecordDict, Scalar, log

from feddtpt_flwr import models
from feddtpt_flwr.assets import cache_folder
from feddtpt_flwr.client_limits import Sizes, too_few_queries
from feddtpt_flwr.client_report import mismatch, refusal
from feddtpt_flwr.client_state import RUN_KEY
from feddtpt_flwr.data import ClientData, Example
from feddtpt_flwr.experiment import load_task
from feddtpt_flwr.language_model.usage import Metered, Usage
from feddtpt_flwr.node import Node
from feddtpt_flwr.privacy.exponential import require_opendp
from feddtpt_flwr.privacy.exponential_client import ExponentialClient
from feddtpt_flwr.privacy.own_prompts import OwnPrompt, keep, search_name
from feddtpt_flwr.privacy.public_tokens import allowed_tokens, passes
from feddtpt_flwr.privacy.synthetic import write_examples
from strategies.wire import (
    CLIENT_KEY,
    COMPARED_KEY,
    COMPLETION_TOKENS_KEY,
    COST_KEY,
    FAILURE_KEY,
    GAIN_KEY,
    LIMIT_KEY,
    MODEL_KEY,
    PROMPT_TOKENS_KEY,
    QUERIES_KEY,
    RACE_EXAMPLES_KEY,
    ROUND_KEY,
    SUMMED_KEYS,
    USED_UP_KEY,
    VOCABULARY_KEY,
)

Metrics = dict[str, Scalar]
MakeClient = Callable[[Node, RecordDict], NumPyClient]
"""Makes the plain client of a node, with a state to keep things in."""

SYNTHETIC_KEY = "synthetic-examples"
OWN_PROMPT_KEY = "own-prompt"
OWN_ACCURACY_KEY = "own-accuracy"
_OWN = "own:"  # before the names of the private search's records in the client's state

_OF_NO_PROMPT = {
    CLIENT_KEY,
    MODEL_KEY,
    VOCABULARY_KEY,
    FAILURE_KEY,
    LIMIT_KEY,
    USED_UP_KEY,
}
"""Texts that a client tells which name no token of a prompt."""

_SUMMED = ("requests", "retries", *SUMMED_KEYS)


def protected(node: Node, state: RecordDict, make: MakeClient) -> NumPyClient:
    """Return the client of ``node`` as the run's ``privacy`` wants it.

    Raises
    ------
    ConfigError
        If something that it needs is not installed.
    """
    match node.config.privacy:
        case "public-tokens":
            return PublicTokensClient(node, make(node, state))
        case "synthetic":
            return SyntheticClient(node, state, make)
        case "exponential":
            require_opendp()
            return ExponentialClient(node, state, make(node, state))
    return make(node, state)


class PublicTokensClient(NumPyClient):
    """Looks once more at every prompt that the plain client uploads.

    Its proposer puts in public tokens only (`searches.build_proposer`); nothing else may go out if
    that ever fails.
    """

    def __init__(self, node: Node, client: NumPyClient) -> None:
        self._node = node
        self._client = client

    def fit(self, parameters: NDArrays, config: Metrics) -> tuple[NDArrays, int, Metrics]:
        """Search; a prompt with other tokens is replaced by the global one."""
        arrays, num_examples, metrics = self._client.fit(parameters, config)
        task = load_task(self._node.config)
        public = allowed_tokens(self._node.config, task, self._node.public)
        received = tuple(parameters[0].tolist())
        if all(passes(tuple(array.tolist()), received, public) for array in arrays):
            return arrays, num_examples, metrics
        log(
            ERROR, "client %s: a prompt with tokens that are not public stays here", self._node.name
        )
        kept = {
            key: value
            for key, value in metrics.items()
            if not isinstance(value, (str, bytes)) or key in _OF_NO_PROMPT
        }
        return [parameters[0]], num_examples, kept | {GAIN_KEY: 0.0, "accepted": "[]"}

    def evaluate(self, parameters: NDArrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Count as the plain client does."""
        return self._client.evaluate(parameters, config)


class SyntheticClient(NumPyClient):
    """Uploads a prompt tuned on synthetic examples; the one tuned on private examples stays.

    Half of a round's queries go to each. The synthetic examples are written once, within the first
    half. The private prompt starts from the global one; it is kept in the client's state under
    ``own-prompt`` and on disk (`own_prompts`), and its accuracy on the validation examples is told
    as ``own-accuracy``.
    """

    def __init__(self, node: Node, state: RecordDict, make: MakeClient) -> None:
        self._node = node
        self._state = state
        self._make = make

    def fit(self, parameters: NDArrays, config: Metrics) -> tuple[NDArrays, int, Metrics]:
        """Search twice; return the prompt that has not seen private examples."""
        node = self._node
        if reason := mismatch(config, node.config) or too_few_queries(
            node.config, Sizes.of(node.data, node.public)
        ):
            return [], 0, refusal(node.name, config, reason)
        half = node.config.queries_per_round // 2
        examples, writing = self._examples(half // 2)
        data = replace(node.data, train=examples)
        uploading = self._make(self._part(data, half - int(writing[QUERIES_KEY])), self._state)
        arrays, num_examples, metrics = uploading.fit(parameters, config)
        own = self._own(parameters, config, node.config.queries_per_round - half)
        return arrays, num_examples, _with_sums(metrics, writing, own)

    def evaluate(self, parameters: NDArrays, config: Metrics) -> tuple[float, int, Metrics]:
        """Count as the plain client does."""
        return self._make(self._node, self._state).evaluate(parameters, config)

    def _part(self, data: ClientData, queries: int, name: str = "") -> Node:
        run = self._node.config.model_copy(update={"queries_per_round": max(1, queries)})
        return replace(self._node, config=run, data=data, name=name or self._node.name)

    def _examples(self, max_queries: int) -> tuple[tuple[Example, ...], Metrics]:
        """Return the synthetic examples, and what it took to write them just now."""
        record = self._state.config_records.get(SYNTHETIC_KEY)
        if record is not None:
            return tuple(Example(*pair) for pair in json.loads(str(record["examples"]))), {
                QUERIES_KEY: 0
            }
        run = self._node.config
        task, model = load_task(run), models.language_model(run)
        before = model.usage if isinstance(model, Metered) else Usage()
        written = write_examples(
            model,
            task,
            run.seed_prompt or task.seed_prompt,
            self._node.public,
            np.random.default_rng([run.seed, *self._node.name.encode()]),
            per_class=run.k_shot,
            max_queries=max_queries,
        )
        log(
            INFO,
            "client %s: the language model wrote %d examples in %d queries",
            self._node.name,
            len(written.examples),
            written.queries,
        )
        if not written.cut_short:
            pairs = json.dumps([[e.input, e.label] for e in written.examples])
            self._state[SYNTHETIC_KEY] = ConfigRecord({"examples": pairs})
        spent: Metrics = {QUERIES_KEY: written.queries}
        if isinstance(model, Metered):
            used = model.usage - before
            spent |= {
                "requests": used.requests,
                "retries": used.retries,
                PROMPT_TOKENS_KEY: used.prompt_tokens,
                COMPLETION_TOKENS_KEY: used.completion_tokens,
                COST_KEY: models.prices(run).cost(used),
            }
        return written.examples, spent

    def _own(self, parameters: NDArrays, config: Metrics, queries: int) -> Metrics:
        """Search on the private examples; keep the prompt, return numbers only."""
        data = self._node.data
        # Under another name: nothing of this search may be taken up by the one that uploads.
        name = search_name(self._node.name)
        node = self._part(data, queries - len(data.validation), name)
        state = RecordDict(
            {
                key.removeprefix(_OWN): record
                for key, record in self._state.items()
                if key.startswith(_OWN)
            }
        )
        client = self._make(node, state)
        # Nobody else compares this prompt: only what its own examples say counts.
        ours = (COMPARED_KEY, RACE_EXAMPLES_KEY)
        alone = {key: value for key, value in config.items() if key not in ours}
        arrays, _, metrics = client.fit(parameters, alone)
        told = {key: metrics[key] for key in _SUMMED if key in metrics}
        if arrays:
            validation = replace(node, data=replace(data, train=()))
            loss, counted, scored = self._make(validation, state).evaluate(arrays, alone)
            told = _with_sums(told, {key: scored[key] for key in _SUMMED if key in scored})
            accuracy = 1 - loss if counted else None
            if accuracy is not None:
                told[OWN_ACCURACY_KEY] = accuracy
            vocabulary = models.masked_lm(node.config, load_task(node.config)).vocabulary
            prompt = vocabulary.decode(arrays[0].tolist())
            self._state[OWN_PROMPT_KEY] = ConfigRecord({"prompt": prompt})
            run, server_round = str(config.get(RUN_KEY, "")), int(config[ROUND_KEY])
            if node.config.cache_size_mib:  # or it would be added to a file from before
                keep(
                    cache_folder(), OwnPrompt(run, self._node.name, server_round, prompt, accuracy)
                )
        for key, record in state.items():
            self._state[_OWN + key] = record
        return told


def _with_sums(metrics: Metrics, *others: Metrics) -> Metrics:
    """Return ``metrics`` with what the others spent added, and what only they have."""
    result = dict(metrics)
    for other in others:
        for key, value in other.items():
            if key in _SUMMED and key in result:
                result[key] = result[key] + value  # type: ignore[operator]
            else:
                result[key] = value
    return result
