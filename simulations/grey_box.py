"""Soft prompts by evolution, for clients that see probabilities: a grey box.

Every client searches by CMA-ES in a space of few dimensions that a random matrix maps to the
prompt's vectors (BBT, arXiv 2201.03514).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.data import Example
from simulations.soft_prompt_model import BATCH, SoftPromptModel

if TYPE_CHECKING:
    import torch

DIMENSIONS = 500
POPULATION, LEAST = 20, 4
"""Points of a generation where the budget has room for two, and at least."""

LOCAL_POPULATION = 5
"""Points of a client's generation in FedBPT (its section 5.1)."""

SPREAD = 0.5
"""How far a step of one in the small space moves a vector, in standard deviations of embeddings."""

Floats = NDArray[np.float64]


class Subspace:
    """Points of a small space, each of which stands for a soft prompt.

    Parameters
    ----------
    model : SoftPromptModel
        The model.
    start : torch.Tensor
        Vectors of the seed prompt, shape ``(n, d)``: what the origin stands for.
    seed : int
        Decides the matrix, so that only points travel.
    """

    def __init__(self, model: SoftPromptModel, start: "torch.Tensor", seed: int) -> None:
        import torch

        self._model = model
        self._start = start
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(start.numel(), DIMENSIONS, generator=generator)
        self._matrix = (matrix * (SPREAD * model.scale / DIMENSIONS**0.5)).to(start.device)

    def vectors(self, point: Floats) -> "torch.Tensor":
        """Return the prompt that a point stands for."""
        import torch

        moved = self._matrix @ torch.from_numpy(point).float().to(self._matrix.device)
        vectors: torch.Tensor = self._start + moved.reshape(self._start.shape)
        return vectors

    def loss(self, point: Floats, examples: Sequence[Example]) -> float:
        """Return the mean cross-entropy of the prompt that a point stands for."""
        import torch

        prompt = self.vectors(point)
        batches = [examples[i : i + BATCH] for i in range(0, len(examples), BATCH)]
        with torch.inference_mode():
            losses = [float(self._model.loss(prompt, batch)) * len(batch) for batch in batches]
        return sum(losses) / len(examples)


class FedBBT:
    """CMA-ES at the clients; the server averages the points (FedAvg-BBT in the paper's Table 1).

    Different from BBT: the prompt has as many vectors as the seed prompt has tokens, not 50; the
    search begins anew in every round, around the average; a generation has 20 points only where
    the queries suffice for two; and `SPREAD` was not tuned.

    Parameters
    ----------
    model, start, seed
        As for `Subspace`.
    """

    num_parameters = DIMENSIONS
    num_down = num_up = DIMENSIONS

    def __init__(self, model: SoftPromptModel, start: "torch.Tensor", seed: int) -> None:
        self._space = Subspace(model, start, seed)
        self._point = np.zeros(DIMENSIONS)

    @staticmethod
    def generations(budget: int, num_examples: int) -> tuple[int, int]:
        """Return the points of a client's generation, and how many generations it has a round."""
        population = max(LEAST, min(POPULATION, budget // (2 * num_examples)))
        return population, budget // (population * num_examples)

    @staticmethod
    def least_queries(num_examples: int) -> int:
        """Return the queries of a client's smallest round: one generation."""
        return LEAST * num_examples

    @property
    def prompt(self) -> "torch.Tensor":
        """The vectors of the point so far."""
        return self._space.vectors(self._point)

    def round(
        self, clients: Sequence[Sequence[Example]], budget: int, rng: np.random.Generator
    ) -> int:
        """Search on every client's examples and average; return the queries of all."""
        import cma

        points, queries = [], 0
        for examples in clients:
            population, generations = self.generations(budget, len(examples))
            search = cma.CMAEvolutionStrategy(self._point, 1.0, _options(population, rng))
            for _ in range(generations):
                asked = search.ask()
                search.tell(asked, [self._space.loss(point, examples) for point in asked])
                queries += population * len(examples)
            points.append(np.asarray(search.mean))
        self._point = np.mean(points, axis=0)
        return queries


class FedBPT:
    """CMA-ES at the clients and over them (FedBPT, arXiv 2310.01467, section 4.3).

    Every client starts from the server's distribution. The server takes the means that they end
    with for points that it had drawn itself, each with its loss on the client's own examples, and
    moves its distribution by them, with the step length of the paper's equation (6).

    Two things differ from the paper. Its perturbed objective (equation 7), made for clients with
    uneven labels, would ask twice for everything, and is left out. And the paper does not say what
    becomes of the clients' step length: here it changes as the server's does.

    Parameters
    ----------
    model, start, seed
        As for `Subspace`.
    """

    num_parameters = DIMENSIONS
    # Mean, covariance (a triangle) and step length; the paper counts the mean alone.
    num_down = DIMENSIONS + DIMENSIONS * (DIMENSIONS + 1) // 2 + 1
    num_up = DIMENSIONS + 2  # mean, its loss, and the sum of the squared step lengths

    def __init__(self, model: SoftPromptModel, start: "torch.Tensor", seed: int) -> None:
        self._space = Subspace(model, start, seed)
        self._step = 1.0
        self._global: Any = None  # CMA-ES over the clients, once it is known how many they are

    @staticmethod
    def generations(budget: int, num_examples: int) -> tuple[int, int]:
        """Return the points of a client's generation, and how many generations it has a round."""
        affordable = budget // num_examples - 1  # the rest is for the loss of what was found
        population = max(LEAST, min(LOCAL_POPULATION, affordable))
        return population, affordable // population

    @staticmethod
    def least_queries(num_examples: int) -> int:
        """Return the queries of a client's smallest round: one generation, and its mean's loss."""
        return (LEAST + 1) * num_examples

    @property
    def prompt(self) -> "torch.Tensor":
        """The vectors of the distribution's mean."""
        mean = np.zeros(DIMENSIONS) if self._global is None else np.asarray(self._global.mean)
        return self._space.vectors(mean)

    def round(
        self, clients: Sequence[Sequence[Example]], budget: int, rng: np.random.Generator
    ) -> int:
        """Search on every client's examples, then over the clients; return the queries of all.

        Raises
        ------
        ConfigError
            If there is one client alone.
        """
        import cma

        if len(clients) < 2:
            raise ConfigError("FedBPT needs two clients or more")
        if self._global is None:
            start = np.zeros(DIMENSIONS)
            self._global = cma.CMAEvolutionStrategy(start, 1.0, _options(len(clients), rng))
        means, losses, squares, queries = [], [], [], 0
        for examples in clients:
            population, generations = self.generations(budget, len(examples))
            local = self._global._copy_light(self._step, _options(population, rng))
            square = 0.0
            for _ in range(generations):
                square += local.sigma**2 / population
                asked = local.ask()
                local.tell(asked, [self._space.loss(point, examples) for point in asked])
            means.append(np.asarray(local.mean))
            losses.append(self._space.loss(means[-1], examples))
            squares.append(square)
            queries += (generations * population + 1) * len(examples)
        self._aggregate(means, losses, squares)
        return queries

    def _aggregate(
        self, means: Sequence[Floats], losses: Sequence[float], squares: Sequence[float]
    ) -> None:
        """Move the distribution by what the clients found.

        Parameters
        ----------
        means, losses
            Where each client's search ended, and the loss there.
        squares
            Each client's step lengths, squared, summed and divided by its population.
        """
        better_half = np.argsort(losses)[: len(losses) // 2]
        step = 2 * float(np.sqrt(sum(squares[i] for i in better_half) / len(losses)))
        self._global.sigma = step
        self._global.ask()  # tell follows ask, whoever the points are from
        self._global.tell(means, losses, check_points=False)
        self._step *= self._global.sigma / step


def _options(population: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"popsize": population, "seed": int(rng.integers(1, 2**31)), "verbose": -9}
