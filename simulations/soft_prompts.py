"""Federated soft prompts: what clients can do that see more of the model than its answers.

``fedprompt`` is a white box: every client moves the prompt's vectors along their gradient, the
server averages them (FedPrompt, arXiv 2208.12268). ``fedbbt`` is a grey box: every client sees the
answer words' probabilities and searches by CMA-ES in a space of few dimensions that a random matrix
maps to the vectors (BBT, arXiv 2201.03514), and the server averages the points (FedAvg-BBT in the
paper's Table 1). Such prompts are no text, and fit the one model that they were tuned on.

They leave a run folder like the app's, so that a suite compares them: one process is all clients.
"""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.run_folder import RunFolder
from simulations.suite import BASELINES

if TYPE_CHECKING:
    import torch

BATCH = 8
LEARNING_RATE = 0.01
DIMENSIONS = 500
POPULATION, LEAST = 20, 4
"""Points of a generation where the budget has room for two, and at least."""

SPREAD = 0.5
"""How far a step of one in the small space moves a vector, in standard deviations of embeddings."""

Floats = NDArray[np.float64]


class SoftPromptModel:
    """A causal language model that reads vectors in the prompt's place.

    Parameters
    ----------
    config : RunConfig
        Names a local model, asked in plain format.
    task : Task
        Template and answer words; the first tokens of these must differ.

    Raises
    ------
    ConfigError
        If the model is behind an endpoint or a chat template, or the answer words begin alike.
    """

    def __init__(self, config: RunConfig, task: Task) -> None:
        from feddtpt_flwr.language_model.weights import load_causal_lm, resolve_device

        if config.endpoint or config.chat:
            raise ConfigError("soft prompts need a local model and chat = false")
        self._device = resolve_device(config.device)
        self._model, self._tokenizer = load_causal_lm(
            config.language_model, self._device, "float32"
        )
        self._model.requires_grad_(False)
        self._table = self._model.get_input_embeddings()
        self._before, self._after = task.compose("\0").split("\0")
        # As in the black box, an answer word follows a space.
        self._answers = [
            self._tokenizer(" " + word, add_special_tokens=False)["input_ids"][0]
            for word in task.answers
        ]
        if len(set(self._answers)) < len(self._answers):
            raise ConfigError(f"answer words {task.answers} begin with the same token")

    def embed(self, text: str) -> "torch.Tensor":
        """Return the vectors of a text's tokens, shape ``(n, d)``."""
        import torch

        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        vectors: torch.Tensor = self._table(
            torch.tensor(ids, device=self._device, dtype=torch.long)
        )
        return vectors

    @property
    def scale(self) -> float:
        """Standard deviation of the vocabulary's vectors."""
        return float(self._table.weight.std())

    def log_probs(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> "torch.Tensor":
        """Return the answer words' log-probabilities among themselves, ``(examples, words)``."""
        import torch

        before = self.embed(self._before)
        rows = [
            torch.cat([before, prompt, self.embed(self._after + example.input)])
            for example in examples
        ]
        lengths = [len(row) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(length, dtype=torch.long) for length in lengths], batch_first=True
        )
        states = self._model.base_model(
            inputs_embeds=padded, attention_mask=mask.to(self._device)
        ).last_hidden_state
        last = states[torch.arange(len(rows)), [length - 1 for length in lengths]]
        weight = self._model.get_output_embeddings().weight[self._answers]
        return torch.log_softmax((last @ weight.T).float(), dim=-1)

    def loss(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> "torch.Tensor":
        """Return the mean cross-entropy."""
        import torch

        labels = torch.tensor([example.label for example in examples], device=self._device)
        return torch.nn.functional.nll_loss(self.log_probs(prompt, examples), labels)

    def accuracy(self, prompt: "torch.Tensor", examples: Sequence[Example]) -> float:
        """Return the share of right answers."""
        import torch

        right = 0
        with torch.inference_mode():
            for start in range(0, len(examples), BATCH):
                batch = examples[start : start + BATCH]
                best = self.log_probs(prompt, batch).argmax(-1).tolist()
                right += sum(b == e.label for b, e in zip(best, batch, strict=True))
        return right / len(examples)


class FedPrompt:
    """Gradient steps on the vectors; the server averages them. White box.

    Parameters
    ----------
    model : SoftPromptModel
        The model.
    start : torch.Tensor
        Vectors of the seed prompt, shape ``(n, d)``.
    """

    def __init__(self, model: SoftPromptModel, start: "torch.Tensor", seed: int) -> None:
        self._model = model
        self.prompt = start.clone()
        self.num_parameters = start.numel()

    def round(
        self, clients: Sequence[Sequence[Example]], budget: int, rng: np.random.Generator
    ) -> int:
        """Tune on every client's examples and average; return the queries of all."""
        import torch

        tuned, queries = [], 0
        for examples in clients:
            vectors = self.prompt.clone().requires_grad_(True)
            optimiser = torch.optim.Adam([vectors], LEARNING_RATE)
            size = min(BATCH, len(examples))
            for _ in range(budget // size):
                chosen = rng.choice(len(examples), size, replace=False)
                optimiser.zero_grad()
                loss = self._model.loss(vectors, [examples[i] for i in chosen])
                torch.autograd.backward(loss)
                optimiser.step()
                queries += size
            tuned.append(vectors.detach())
        self.prompt = torch.stack(tuned).mean(0)
        return queries


class FedBBT:
    """CMA-ES in a small random subspace; the server averages the points. Grey box.

    Parameters are those of `FedPrompt`; ``seed`` decides the subspace, so that only points travel.
    """

    def __init__(self, model: SoftPromptModel, start: "torch.Tensor", seed: int) -> None:
        import torch

        self._model = model
        self._start = start
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(start.numel(), DIMENSIONS, generator=generator)
        self._matrix = (matrix * (SPREAD * model.scale / DIMENSIONS**0.5)).to(start.device)
        self._point = np.zeros(DIMENSIONS)
        self.num_parameters = DIMENSIONS

    @property
    def prompt(self) -> "torch.Tensor":
        """The vectors of the point so far."""
        return self._vectors(self._point)

    def round(
        self, clients: Sequence[Sequence[Example]], budget: int, rng: np.random.Generator
    ) -> int:
        """Search on every client's examples and average; return the queries of all."""
        import cma
        import torch

        points, queries = [], 0
        for examples in clients:
            population = max(LEAST, min(POPULATION, budget // (2 * len(examples))))
            options = {"seed": int(rng.integers(1, 2**31)), "popsize": population, "verbose": -9}
            strategy = cma.CMAEvolutionStrategy(self._point, 1.0, options)
            cost = population * len(examples)
            with torch.inference_mode():
                for _ in range(budget // cost):
                    asked = strategy.ask()
                    losses = [float(self._loss(point, examples)) for point in asked]
                    strategy.tell(asked, losses)
                    queries += cost
            points.append(np.asarray(strategy.mean))
        self._point = np.mean(points, axis=0)
        return queries

    def _loss(self, point: Floats, examples: Sequence[Example]) -> float:
        prompt = self._vectors(point)
        batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        losses = [float(self._model.loss(prompt, batch)) * len(batch) for batch in batches]
        return sum(losses) / len(examples)

    def _vectors(self, point: Floats) -> "torch.Tensor":
        import torch

        moved = self._matrix @ torch.from_numpy(point).float().to(self._matrix.device)
        vectors: torch.Tensor = self._start + moved.reshape(self._start.shape)
        return vectors


TUNERS: dict[str, Any] = {"fedprompt": FedPrompt, "fedbbt": FedBBT}


def run(baseline: str, settings: dict[str, Any], num_clients: int) -> Path:
    """Tune a soft prompt with the settings of an app's run; return the run folder.

    Raises
    ------
    ConfigError, DataError
        If a setting or the data is not what it has to be.
    """
    config = RunConfig.from_run_config(settings)
    task = load_task(config)
    data = load_data(config, num_clients)
    seed_prompt = config.seed_prompt or task.seed_prompt
    model = SoftPromptModel(config, task)
    start = model.embed(seed_prompt)
    tuner = TUNERS[baseline](model, start, config.seed)
    folder = RunFolder(Path(config.run_folder), f"{task.name}-{baseline}")
    folder.write_config(config.to_run_config())
    clients = [[*client.train, *data.public] for client in data.clients]
    rng = np.random.default_rng([config.seed, num_clients])
    accuracies, queries = [model.accuracy(start, data.test)], 0
    folder.append("start", prompt=seed_prompt, accuracy=accuracies[0])
    for number in range(1, config.num_server_rounds + 1):
        queries += tuner.round(clients, config.queries_per_round, rng)
        accuracies.append(model.accuracy(tuner.prompt, data.test))
        folder.append(
            "round",
            round=number,
            queries=queries,
            accuracy=accuracies[-1],
            bytes=2 * num_clients * 4 * tuner.num_parameters,
        )
        print(f"round {number}: {accuracies[-1]:.3f} after {queries:,} queries", flush=True)
    folder.write_prompt(
        {
            "prompt": f"({len(start)} vectors)",
            "tokens": [],
            "parameters": tuner.num_parameters,
            "seed-prompt": seed_prompt,
            "queries": queries,
            "held-out-accuracy": {
                "seed-prompt": {"accuracy": accuracies[0], "examples": len(data.test)},
                "learned": {"accuracy": accuracies[-1], "examples": len(data.test)},
            },
        }
    )
    return folder.path


def main() -> None:
    """Run with the settings of a TOML file, as a suite does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("baseline", choices=BASELINES)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--num-clients", type=int, required=True)
    arguments = parser.parse_args()
    settings = tomllib.loads(arguments.settings.read_text(encoding="utf-8"))
    run(arguments.baseline, settings, arguments.num_clients)


if __name__ == "__main__":
    main()
