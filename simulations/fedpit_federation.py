"""FedPIT's rounds in one process, so that what several methods have in common is done once.

Up to the mixing of a client's two adapters, the first round is the same for every beta below 1.
Nodes, clients' steps, the model and the form in which adapters travel are the app's own.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.local_round import Trained, client_rng, local_round, memorisation
from feddtpt_flwr.fedpit.node import adapted_model
from feddtpt_flwr.fedpit.partition import divide, hold_out
from feddtpt_flwr.fedpit.scores import Utility
from feddtpt_flwr.fedpit.tasks import load_instructions
from strategies.adapters import Adapter, WireDtype, from_record, num_bytes, stack_layers, to_record


@dataclass(frozen=True)
class Measured:
    """A global adapter's figures.

    Attributes
    ----------
    utility : Utility
        Of the held-out instructions.
    memorisation : float
        Mean Rouge-L of all clients' private responses, in [0, 1].
    """

    utility: Utility
    memorisation: float


@dataclass(frozen=True)
class Tuned:
    """What a method came to.

    Attributes
    ----------
    before, after : Measured
        Of the untouched model, and after the last round.
    synthetic_rouge_l : float or None
        Of synthetic and closest private texts, over all clients and rounds.
    selected : tuple[int, ...]
        Synthetic examples of each client in each round; empty where none are wanted.
    bytes_per_round : int
        Adapters to and from all clients, with the evaluation that every round ends with.
    """

    before: Measured
    after: Measured
    synthetic_rouge_l: float | None
    selected: tuple[int, ...]
    bytes_per_round: int


class Federation:
    """The clients of one seed; methods are tried on them one after the other.

    Parameters
    ----------
    settings : Mapping[str, Any]
        Settings of every method, as in a run config.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = dict(settings)
        config = FedPITConfig.from_run_config(self._settings)
        self._data = load_instructions(config)
        self._test = hold_out(self._data.test, config.test_size, config.seed)
        self._model = adapted_model(config)
        self._start = self._model.adapter
        self._trained: dict[tuple[Any, ...], Trained] = {}
        self._measured: dict[tuple[int, str], Measured] = {}
        self._clients = cache(self._divide)

    def tune(self, num_clients: int, settings: Mapping[str, Any]) -> Tuned:
        """Run one method, with ``settings`` instead of those of every method."""
        config = FedPITConfig.from_run_config({**self._settings, **settings})
        clients = self._clients(num_clients, config.examples_per_client)
        adapter = self._start
        before = self._measure(_travelled(adapter, config.upload_dtype), clients)
        distances: list[float] = []
        selected: list[int] = []
        for server_round in range(1, config.num_server_rounds + 1):
            sent = _travelled(adapter, config.upload_dtype)
            uploads = []
            for index, private in enumerate(clients):
                trained = self._train(sent, private, config, server_round, str(index))
                uploads.append(_travelled(trained.upload(config), config.upload_dtype))
                if "synthetic-rouge-l" in trained.metrics:
                    distances.append(trained.metrics["synthetic-rouge-l"])
                if "selected" in trained.metrics:
                    selected.append(int(trained.metrics["selected"]))
            # All have the same number of examples.
            adapter = {name: np.mean([u[name] for u in uploads], axis=0) for name in sent}
        size = num_bytes(to_record(stack_layers(adapter), config.upload_dtype))
        return Tuned(
            before,
            self._measure(_travelled(adapter, config.upload_dtype), clients),
            float(np.mean(distances)) if distances else None,
            tuple(selected),
            3 * len(clients) * size,
        )

    def _train(
        self,
        start: Adapter,
        private: tuple[Instruction, ...],
        config: FedPITConfig,
        server_round: int,
        name: str,
    ) -> Trained:
        # All that local_round looks at; and not beta, which decides after it, but for its end.
        alike = config.model_copy(update={"beta": 0.0 if config.synthetic else 1.0})
        key = (_fingerprint(start), private, server_round, name, alike)
        if key not in self._trained:
            self._trained[key] = local_round(
                self._model,
                start,
                private,
                config,
                proximal_mu=config.proximal_mu,
                rng=client_rng(config.seed, server_round, name),
            )
        return self._trained[key]

    def _measure(self, adapter: Adapter, clients: tuple[tuple[Instruction, ...], ...]) -> Measured:
        key = (len(clients), _fingerprint(adapter))
        if key not in self._measured:
            self._model.load(adapter)
            answers = self._model.answer([row.instruction for row in self._test])
            utility = Utility.of([self._model.shorten(row) for row in self._test], answers)
            leaked = [memorisation(self._model, adapter, private)[0] for private in clients]
            self._measured[key] = Measured(utility, float(np.mean(leaked)))
        return self._measured[key]

    def _divide(
        self, num_clients: int, examples_per_client: int
    ) -> tuple[tuple[Instruction, ...], ...]:
        config = FedPITConfig.from_run_config(self._settings)
        return divide(
            self._data.train,
            num_clients=num_clients,
            examples_per_client=examples_per_client,
            partition=config.partition,
            dirichlet_alpha=config.dirichlet_alpha,
            seed=config.seed,
        )


def _travelled(adapter: Adapter, dtype: WireDtype) -> Adapter:
    return from_record(to_record(adapter, dtype), dtype)


def _fingerprint(adapter: Adapter) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(adapter):
        digest.update(adapter[name].tobytes())
    return digest.hexdigest()
