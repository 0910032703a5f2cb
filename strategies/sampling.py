"""Which nodes evaluate, drawn without waiting for one that has left meanwhile."""

import random
from logging import INFO

from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy.strategy_utils import sample_nodes


def num_evaluating(num_connected: int, fraction: float, min_nodes: int) -> int:
    """Return how many nodes evaluate, as `FedAvg` counts them."""
    return max(int(num_connected * fraction), min_nodes)


def draw_evaluating(grid: Grid, fraction: float, min_nodes: int) -> list[int]:
    """Draw the nodes that evaluate, once as many as are needed are connected.

    `FedAvg` waits for ``min_available_nodes`` here too; and who is there is looked up once, or a
    node that leaves in between would be waited for.
    """
    _, connected = sample_nodes(grid, min_nodes, 0)
    nodes = random.sample(connected, num_evaluating(len(connected), fraction, min_nodes))
    log(INFO, "configure_evaluate: Sampled %s nodes (out of %s)", len(nodes), len(connected))
    return nodes
