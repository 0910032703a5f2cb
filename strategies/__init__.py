"""FedDTPT's server as a library: it needs flwr, numpy and scikit-learn, and nothing of the app.

- `strategies.message.FedDTPT`, a strategy for ``flwr.serverapp`` (``train``, ``evaluate``);
- `strategies.feddtpt.FedDTPT`, the same for ``flwr.server`` (``fit``, ``evaluate``);
- `strategies.aggregate`, the bare mathematics: arrays in, the next global prompt out;
- `strategies.fedpit.FedPIT`, the weighted average of adapters, for the app FedPIT.

The strategies are imported from their modules, so that the mathematics does not import Flower.
"""

from strategies.aggregation import Aggregate, aggregate
from strategies.attention import attention_weights
from strategies.clustering import cluster_tokens, min_samples_for
from strategies.elbow import ELBOWS, elbow, neighbour_distances
from strategies.methods import METHODS
from strategies.selection import representatives

__all__ = [
    "ELBOWS",
    "METHODS",
    "Aggregate",
    "aggregate",
    "attention_weights",
    "cluster_tokens",
    "elbow",
    "min_samples_for",
    "neighbour_distances",
    "representatives",
]
