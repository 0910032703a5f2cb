"""A federation in one process: the app's clients and rounds, without Flower between them.

It keeps every upload, also those that no candidate was made of, and lets a client be replaced.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, RecordDict, Scalar
from numpy.typing import NDArray

from feddtpt_flwr import models
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.client_app import plain_client
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import FederatedData
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.experiment import load_task, readability, seed_tokens
from feddtpt_flwr.node import Node
from feddtpt_flwr.privacy.clients import protected
from strategies.candidates import Tokens
from strategies.rounds import Rounds
from strategies.settings import RoundSettings
from strategies.wire import QUERIES_KEY, ROUND_KEY, Reply

Answer = tuple[NDArrays, int, Mapping[str, Scalar]]
"""Arrays, number of examples and metrics, as a NumPyClient's ``fit`` returns them."""


class Client(Protocol):
    """Answers both messages of a round."""

    def search(self, prompt: NDArray[np.int64], config: Mapping[str, Scalar]) -> Answer:
        """Return what is uploaded after a search from the global prompt."""
        ...

    def score(
        self, candidates: Sequence[NDArray[np.int64]], config: Mapping[str, Scalar]
    ) -> Answer:
        """Return counts for every candidate, and no arrays."""
        ...


class HonestClient:
    """The app's client, protected as the run's ``privacy`` says.

    Parameters
    ----------
    node : Node
        Its data and settings.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._state = RecordDict()

    def search(self, prompt: NDArray[np.int64], config: Mapping[str, Scalar]) -> Answer:
        """Search from the global prompt."""
        return self._client().fit([prompt], dict(config))

    def score(
        self, candidates: Sequence[NDArray[np.int64]], config: Mapping[str, Scalar]
    ) -> Answer:
        """Count right answers on the private examples."""
        _, number, metrics = self._client().evaluate(list(candidates), dict(config))
        return [], number, metrics

    def _client(self) -> NumPyClient:
        return protected(self._node, self._state, plain_client)


@dataclass(frozen=True)
class Sent:
    """One client's upload of a round.

    Attributes
    ----------
    client : str
        Its name.
    sent, prompt : str
        The prompt that it was sent and the one that came back.
    tried : str
        What the changes that led there put in; also what was changed again.
    """

    client: str
    sent: str
    prompt: str
    tried: str


@dataclass(frozen=True)
class Outcome:
    """What one run gave; accuracies in [0, 1], of held-out examples.

    Attributes
    ----------
    seed_accuracy, accuracy : float
        Of the seed prompt and of the learned one.
    queries : int
        Of all clients.
    seconds : float
        Of the rounds.
    prompt : str
        The learned one.
    """

    seed_accuracy: float
    accuracy: float
    queries: int
    seconds: float
    prompt: str


class Federation:
    """Clients, their states, and the rounds.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    data : FederatedData
        Everybody's examples.
    clients : Callable[[Node], Client | None]
        Makes each client; ``None`` for one that does not take part.

    Attributes
    ----------
    settings : RoundSettings
        The server's, as the app has them.
    uploads : list[Sent]
        What `search` has brought so far.
    queries : int
        Of all clients so far.
    metrics : list[Mapping[str, Scalar]]
        What the clients reported with their last searches.
    """

    def __init__(
        self,
        config: RunConfig,
        data: FederatedData,
        clients: Callable[[Node], Client | None] = HonestClient,
    ) -> None:
        self._config = config
        self._task = load_task(config)
        self._test = data.test
        masked_lm = models.masked_lm(config, self._task)
        self._vocabulary = masked_lm.vocabulary
        nodes = [
            Node(str(index), config, own, data.public) for index, own in enumerate(data.clients)
        ]
        self._clients = {
            node.name: client for node in nodes if (client := clients(node)) is not None
        }
        self.settings = RoundSettings(
            embed_fn=models.token_embedder(config, self._task).embed,
            vocabulary_size=len(self._vocabulary),
            vocabulary=self._vocabulary.fingerprint,
            max_tokens=config.max_prompt_tokens,
            aggregation=config.aggregation,
            min_samples=config.min_samples or None,
            fluency_fn=masked_lm.log_likelihood if config.guard else None,
            guard=config.guard,
            race_candidates=config.race_candidates,
            race_examples=config.race_examples,
            admissible=readability(config, self._task),
        )
        self._rounds = self.rounds(self.settings)
        self.uploads: list[Sent] = []
        self.queries = 0
        self.metrics: list[Mapping[str, Scalar]] = []

    def rounds(self, settings: RoundSettings, first: Tokens | None = None) -> Rounds:
        """Return a server's side that begins with ``first``; by default, with the seed prompt."""
        if first is None:
            first = seed_tokens(self._config, self._task, self._vocabulary)
        return Rounds(settings, first, central=lambda *_: None)

    @property
    def prompt(self) -> str:
        """The global prompt."""
        return self._vocabulary.decode(self._rounds.prompt)

    def accuracy(self, *prompts: str) -> list[float]:
        """Return the held-out accuracy of each prompt, in [0, 1]; not among the queries."""
        evaluator = Evaluator(
            models.language_model(self._config),
            self._task,
            QueryBudget(len(prompts) * len(self._test)),
        )
        return [float(a) for a in evaluator.correct_all(prompts, self._test).mean(axis=1)]

    def run(self) -> Outcome:
        """Run all rounds, and measure the prompt before and after."""
        models.language_model(self._config)  # loaded before the clock starts
        first, start = self.prompt, time.monotonic()
        self.run_rounds()
        seconds = time.monotonic() - start
        seed_accuracy, accuracy = self.accuracy(first, self.prompt)
        return Outcome(seed_accuracy, accuracy, self.queries, round(seconds, 1), self.prompt)

    def run_rounds(self) -> None:
        """Run all rounds."""
        for number in range(1, self._config.num_server_rounds + 1):
            self.round(number)

    def round(self, number: int) -> None:
        """Let the clients search and compare, and settle the next global prompt."""
        self.settle(self._rounds, number, self.search(number))

    def search(self, number: int) -> list[Reply]:
        """Let the clients search from the global prompt; return what they upload."""
        sent = np.array(self._rounds.prompt)
        told = {**self._rounds.search_config(len(self._clients)), ROUND_KEY: number}
        replies, self.metrics = [], []
        for name, client in self._clients.items():
            answer = client.search(sent, told)
            arrays, _, metrics = answer
            replies.append(self._reply(name, answer))
            self.metrics.append(metrics)
            changes = json.loads(str(metrics.get("accepted", "[]")))
            tried = " ".join(change["after"] for change in changes)
            self.uploads += [
                Sent(name, self.prompt, self._vocabulary.decode(array.tolist()), tried)
                for array in arrays
            ]
        return replies

    def settle(self, rounds: Rounds, number: int, replies: Sequence[Reply]) -> str:
        """Make the next global prompt of uploads; return it."""
        rounds.begin_round(number)
        rounds.read_uploads(number, replies, 0)
        candidates = rounds.propose()
        if len(candidates) > 1:
            rounds.read_scores(self.compare(rounds, number, candidates), 0)
        rounds.decide()
        return self._vocabulary.decode(rounds.prompt)

    def compare(self, rounds: Rounds, number: int, candidates: Sequence[Tokens]) -> list[Reply]:
        """Let the clients count right answers with each candidate."""
        told = {**rounds.scoring_config(len(self._clients)), ROUND_KEY: number}
        prompts = [np.array(tokens) for tokens in candidates]
        return [
            self._reply(name, client.score(prompts, told)) for name, client in self._clients.items()
        ]

    def _reply(self, name: str, answer: Answer) -> Reply:
        arrays, num_examples, metrics = answer
        self.queries += int(metrics.get(QUERIES_KEY, 0))
        return Reply(name, tuple(map(_as_bytes, arrays)), metrics, num_examples)


def _as_bytes(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
