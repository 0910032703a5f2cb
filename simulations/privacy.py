"""What uploads give away of private texts, and what each defence changes and costs.

python -m simulations privacy

The rounds are those of the app, with the same clients and the same server steps, in one process:
that keeps every upload, also those that no candidate was made of.
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from flwr.client import NumPyClient
from flwr.common import NDArrays, RecordDict, Scalar
from numpy.typing import NDArray
from scipy import stats

from feddtpt_flwr import models
from feddtpt_flwr.client_app import plain_client
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import ClientData, Example, FederatedData, Task
from feddtpt_flwr.evaluation import Evaluator, QueryBudget
from feddtpt_flwr.experiment import load_data, load_task, readability, seed_tokens
from feddtpt_flwr.node import Node
from feddtpt_flwr.privacy.clients import OWN_ACCURACY_KEY, protected
from simulations.leakage import Leakage, Upload, measure
from strategies.rounds import Rounds
from strategies.settings import RoundSettings
from strategies.wire import QUERIES_KEY, ROUND_KEY, Reply

VARIANTS: dict[str, dict[str, Any]] = {
    "none": {},
    "none, without feedback": {"feedback": False},
    "none, random tokens": {"proposer": "random"},
    "public-tokens": {"privacy": "public-tokens"},
    "synthetic": {"privacy": "synthetic"},
    "exponential": {"privacy": "exponential"},
}
"""What differs from `SETTINGS`: each proposer without a defence, and each defence."""

NUM_CLIENTS = 4
SETTINGS: dict[str, Any] = {
    "num-server-rounds": 2,
    "k-shot": 8,
    "public-per-class": 4,
    "queries-per-round": 200,
    "test-size": 200,
}
CANARIES = (
    ("Zorvath", "Quillemar", "7482915", "brindlewick"),
    ("Ykselda", "Fjornheim", "3916047", "crumhorn"),
    ("Obuwasi", "Txakoli", "8250364", "gallimaufry"),
    ("Wrzesnia", "Ngaruawahia", "6173920", "snollygoster"),
)
"""For each client: two names, a number and a rare word, each at the end of every fourth text."""


@dataclass(frozen=True)
class Outcome:
    """What one run gave; accuracies in [0, 1].

    Attributes
    ----------
    leakage : Leakage
        Of all uploads.
    seed_accuracy, accuracy : float
        Of the seed prompt and the learned one on the held-out examples.
    own_accuracy : float or None
        Mean over the clients of their own prompt's accuracy on their validation examples, in the
        last round; None where clients have none.
    queries : int
        Of all clients.
    seconds : float
        Without loading the models.
    prompt : str
        The learned one.
    """

    leakage: Leakage
    seed_accuracy: float
    accuracy: float
    own_accuracy: float | None
    queries: int
    seconds: float
    prompt: str


def plant(data: ClientData, task: Task, canaries: Sequence[str]) -> ClientData:
    """Return the examples with one of the canaries at the end of each text."""
    end = task.render(dict.fromkeys(task.text_columns, "\0")).split("\0")[-1]

    def planted(examples: Sequence[Example]) -> tuple[Example, ...]:
        return tuple(
            replace(e, input=f"{e.input.removesuffix(end)} {canaries[i % len(canaries)]}{end}")
            for i, e in enumerate(examples)
        )

    return ClientData(train=planted(data.train), validation=planted(data.validation))


class Federation:
    """A federation in this process: clients, their states, and the rounds."""

    def __init__(self, config: RunConfig, data: FederatedData) -> None:
        self._config = config
        self._task = load_task(config)
        self._data = data
        self._vocabulary = models.masked_lm(config, self._task).vocabulary
        self._states = [RecordDict() for _ in data.clients]
        self._rounds = Rounds(
            RoundSettings(
                embed_fn=models.token_embedder(config, self._task).embed,
                vocabulary_size=len(self._vocabulary),
                vocabulary=self._vocabulary.fingerprint,
                max_tokens=config.max_prompt_tokens,
                aggregation=config.aggregation,
                min_samples=config.min_samples or None,
                guard=config.guard,
                race_candidates=config.race_candidates,
                admissible=readability(config, self._task),
            ),
            seed_tokens(config, self._task, self._vocabulary),
            central=lambda *_: None,
        )
        self.uploads: list[Upload] = []
        self.queries = 0
        self.own_accuracies: list[float] = []

    @property
    def prompt(self) -> str:
        """The global prompt."""
        return self._vocabulary.decode(self._rounds.prompt)

    def round(self, number: int) -> None:
        """Let the clients search and compare, and settle the next global prompt."""
        self._rounds.begin_round(number)
        sent = self._rounds.prompt
        replies, self.own_accuracies = [], []
        for index in range(len(self._states)):
            arrays, num_examples, metrics = self._client(index).fit(
                [np.array(sent)], {ROUND_KEY: number}
            )
            replies.append(self._reply(index, arrays, num_examples, metrics))
            # The changes that led to the prompt are sent along, also what was changed again.
            changes = json.loads(str(metrics.get("accepted", "[]")))
            tried = " ".join(change["after"] for change in changes)
            self.uploads += [
                Upload(
                    str(index), self.prompt, f"{self._vocabulary.decode(array.tolist())} {tried}"
                )
                for array in arrays
            ]
            if OWN_ACCURACY_KEY in metrics:
                self.own_accuracies.append(float(metrics[OWN_ACCURACY_KEY]))
        self._rounds.read_uploads(number, replies, 0)
        candidates = [np.array(tokens) for tokens in self._rounds.propose()]
        if len(candidates) > 1:
            counts = []
            for index in range(len(self._states)):
                _, num_examples, metrics = self._client(index).evaluate(
                    candidates, {ROUND_KEY: number}
                )
                counts.append(self._reply(index, [], num_examples, metrics))
            self._rounds.read_scores(counts, 0)
        self._rounds.decide()

    def _client(self, index: int) -> NumPyClient:
        node = Node(str(index), self._config, self._data.clients[index], self._data.public)
        return protected(node, self._states[index], plain_client)

    def _reply(
        self, index: int, arrays: NDArrays, num_examples: int, metrics: Mapping[str, Scalar]
    ) -> Reply:
        self.queries += int(metrics[QUERIES_KEY])
        return Reply(str(index), tuple(map(_as_bytes, arrays)), metrics, num_examples)


def run_once(variant: str, seed: int, settings: Mapping[str, Any] = SETTINGS) -> Outcome:
    """Run a federation with canaries in its private texts."""
    config = RunConfig.from_run_config({**settings, **VARIANTS[variant], "seed": seed})
    task = load_task(config)
    data = load_data(config, NUM_CLIENTS)
    clients = tuple(
        plant(client, task, canaries)
        for client, canaries in zip(data.clients, CANARIES, strict=True)
    )
    federation = Federation(config, replace(data, clients=clients))
    model = models.language_model(config)
    first, start = federation.prompt, time.monotonic()
    for number in range(1, config.num_server_rounds + 1):
        federation.round(number)
    seconds = time.monotonic() - start
    evaluator = Evaluator(model, task, QueryBudget(2 * len(data.test)))
    correct = evaluator.correct_all([first, federation.prompt], data.test).mean(axis=1)
    own = federation.own_accuracies
    texts = {
        str(i): [e.input for e in (*client.train, *client.validation)]
        for i, client in enumerate(clients)
    }
    public = [*(e.input for e in data.public), task.compose(""), *task.answers, first]
    canaries = {str(i): words for i, words in enumerate(CANARIES)}
    return Outcome(
        leakage=measure(federation.uploads, texts, public, canaries),
        seed_accuracy=float(correct[0]),
        accuracy=float(correct[1]),
        own_accuracy=float(np.mean(own)) if own else None,
        queries=federation.queries,
        seconds=round(seconds, 1),
        prompt=federation.prompt,
    )


def run(
    seeds: Sequence[int],
    folder: Path,
    variants: Sequence[str] = tuple(VARIANTS),
    settings: Mapping[str, Any] = SETTINGS,
) -> str:
    """Run every variant under every seed; write ``privacy.json`` and ``privacy.md`` to ``folder``.

    What was run before with the same settings is read from ``privacy.json`` and not run again.

    Returns
    -------
    str
        The table, over all that was run.
    """
    file = folder / "privacy.json"
    results: dict[str, dict[str, Any]] = {}
    if file.exists():
        known = json.loads(file.read_text(encoding="utf-8"))
        if known["settings"] == dict(settings):
            results = known["runs"]
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        for variant in variants:
            if str(seed) in results.get(variant, {}):
                continue
            outcome = run_once(variant, seed, settings)
            results.setdefault(variant, {})[str(seed)] = asdict(outcome)
            _write(file, results, settings)
            text = _table(results)
            file.with_suffix(".md").write_text(text, encoding="utf-8")
    return _table(results)


def _write(
    file: Path, results: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> None:
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python "
        f"{platform.python_version()}",
        "clients": NUM_CLIENTS,
        "settings": dict(settings),
        "runs": {name: results[name] for name in VARIANTS if name in results},
    }
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [
        "# What uploads give away",
        "",
        f"{NUM_CLIENTS} clients on rotten_tomatoes, with canaries in all private texts. A word is "
        "new if the prompt that was sent did not have it; by chance it is also in another client's "
        "texts. Leak is the difference of the two shares; words of one client only, and parts of "
        "them, are counted the same way. Intervals are over seeds (95 %, t).",
        "",
        "| privacy | seeds | uploads | new words | in own texts | in another's | leak | 95 % "
        "| only in own / another's | part of such a word, own / another's | canaries "
        "| held-out accuracy | 95 % | own prompt, on validation | queries | seconds |",
        "|" + "---|" * 16,
    ]
    for variant in filter(results.__contains__, VARIANTS):
        runs = results[variant]
        leakages = [Leakage(**run["leakage"]) for run in runs.values()]
        total = sum(leakages, Leakage())
        leaks = np.array([leak for each in leakages if (leak := each.leak()) is not None])
        accuracy = np.array([run["accuracy"] for run in runs.values()])
        own = [run["own_accuracy"] for run in runs.values() if run["own_accuracy"] is not None]
        new = total.new_words
        lines.append(
            f"| {variant} | {len(runs)} | {total.uploads} | {new} | {_share(total.in_own, new)} "
            f"| {_share(total.in_others, new)} | {_share(total.in_own - total.in_others, new)} "
            f"| {_interval(leaks)} | {total.own_only:.0f} / {total.others_only:.1f} "
            f"| {total.own_parts:.0f} / {total.others_parts:.1f} | {total.canaries} "
            f"| {accuracy.mean():.3f} | {_interval(accuracy)} "
            f"| {f'{np.mean(own):.3f}' if own else ''} "
            f"| {np.mean([run['queries'] for run in runs.values()]):,.0f} "
            f"| {np.mean([run['seconds'] for run in runs.values()]):.0f} |"
        )
    seed_prompt = [run["seed_accuracy"] for runs in results.values() for run in runs.values()]
    lines += ["", f"The seed prompt has an accuracy of {np.mean(seed_prompt):.3f}.", ""]
    return "\n".join(lines)


def _share(count: float, total: int) -> str:
    return f"{count / total:.3f}" if total else ""


def _interval(values: NDArray[np.float64]) -> str:
    if len(values) < 2 or np.ptp(values) == 0:
        return ""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{low:.3f} to {high:.3f}"


def _as_bytes(array: NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
