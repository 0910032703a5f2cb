"""Federated soft prompts: what clients can do that see more of the model than its answers.

``fedprompt`` is a white box: every client moves the prompt's vectors along their gradient, the
server averages them (FedPrompt, arXiv 2208.12268). ``fedbbt`` and ``fedbpt`` are grey boxes: see
`simulations.grey_box`. Such prompts are no text, and fit the one model that they were tuned on.

What stands before a prompt, the prompt and what follows it become tokens apart: two line ends may
be one token here and two where a whole query is read, so a seed prompt can have another accuracy
as vectors (0.600 instead of 0.555 on average in ``table3-embedded``) than as text.

They leave a run folder like the app's, so that a suite compares them: one process is all clients.
"""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example
from feddtpt_flwr.experiment import load_data, load_task
from feddtpt_flwr.run_folder import RunFolder
from simulations.grey_box import FedBBT, FedBPT
from simulations.soft_prompt_model import BATCH, SoftPromptModel

if TYPE_CHECKING:
    import torch

LEARNING_RATE = 0.01


class FedPrompt:
    """Gradient steps on the vectors; the server averages them. White box.

    Different from its paper: the prompt has as many vectors as the seed prompt has tokens, and
    begins as these; Adam begins anew in every round; a step counts as one query for each of its
    examples, though it also goes backwards; and `LEARNING_RATE` was not tuned.

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
        self.num_parameters = self.num_down = self.num_up = start.numel()

    @staticmethod
    def least_queries(num_examples: int) -> int:
        """Return the queries of a client's smallest round: one step."""
        return min(BATCH, num_examples)

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


TUNERS: dict[str, Any] = {"fedprompt": FedPrompt, "fedbbt": FedBBT, "fedbpt": FedBPT}


def too_few_queries(baseline: str, budget: int, num_examples: int) -> str:
    """Return why a client cannot tune once with its budget of a round; empty if it can."""
    least = TUNERS[baseline].least_queries(num_examples)
    if budget >= least:
        return ""
    return (
        f"queries-per-round = {budget}: {least} or more are needed for {baseline} on "
        f"{num_examples} examples"
    )


def run(baseline: str, settings: dict[str, Any], num_clients: int) -> Path:
    """Tune a soft prompt with the settings of an app's run; return the run folder.

    ``bytes`` in the history are those of the arrays alone, 4 for each number: nothing is sent here.
    The app's runs count whole messages, with their names, numbers and texts as well.

    Raises
    ------
    ConfigError, DataError
        If a setting or the data is not what it has to be.
    """
    config = RunConfig.from_run_config(settings)
    task = load_task(config)
    data = load_data(config, num_clients)
    clients = [[*client.train, *data.public] for client in data.clients]
    for examples in clients:
        if mistake := too_few_queries(baseline, config.queries_per_round, len(examples)):
            raise ConfigError(mistake)
    seed_prompt = config.seed_prompt or task.seed_prompt
    model = SoftPromptModel(config, task)
    start = model.embed(seed_prompt)
    tuner = TUNERS[baseline](model, start, config.seed)
    folder = RunFolder(Path(config.run_folder), f"{task.name}-{baseline}")
    folder.write_config(config.to_run_config())
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
            bytes=num_clients * 4 * (tuner.num_down + tuner.num_up),
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
    parser.add_argument("baseline", choices=TUNERS)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--num-clients", type=int, required=True)
    arguments = parser.parse_args()
    settings = tomllib.loads(arguments.settings.read_text(encoding="utf-8"))
    run(arguments.baseline, settings, arguments.num_clients)


if __name__ == "__main__":
    main()
