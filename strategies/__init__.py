"""The server side of FedDTPT as a library: NumPy arrays in, the next global prompt out."""

from strategies.aggregation import Aggregate, aggregate
from strategies.attention import attention_weights
from strategies.clustering import cluster_tokens
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
    "neighbour_distances",
    "representatives",
]
