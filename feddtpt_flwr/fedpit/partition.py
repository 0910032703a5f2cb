"""Which instructions each client has, and which are held out."""

from collections.abc import Sequence

import numpy as np

from feddtpt_flwr.data import DataError, Partition
from feddtpt_flwr.fedpit.instructions import Instruction

# One independent stream of random numbers for each purpose: a different number of held-out
# instructions must not change what the clients get.
_ORDER, _TOPICS, _TEST = range(3)


def divide(
    rows: Sequence[Instruction],
    *,
    num_clients: int,
    examples_per_client: int,
    partition: Partition,
    dirichlet_alpha: float,
    seed: int,
) -> tuple[tuple[Instruction, ...], ...]:
    """Give every client the same number of instructions; none is given twice.

    With ``"iid"`` one client of ``n`` instructions has the same ones as several clients that have
    ``n`` together: that is how federated runs are compared with a central one.

    Parameters
    ----------
    rows : Sequence[Instruction]
        What there is.
    num_clients, examples_per_client : int
        Each at least 1.
    partition : {"iid", "dirichlet"}
        With ``"dirichlet"`` each client has its own mixture of topics, drawn from a symmetric
        Dirichlet distribution over the topics of ``rows``.
    dirichlet_alpha : float
        Its concentration, above 0. Not used for ``"iid"``.
    seed : int
        0 or more.

    Returns
    -------
    tuple of tuple of Instruction
        ``num_clients`` of length ``examples_per_client``.

    Raises
    ------
    DataError
        If there are too few rows, or no topics to divide by.
    """
    needed = num_clients * examples_per_client
    if needed > len(rows):
        raise DataError(
            f"{needed} instructions are needed for {num_clients} clients, {len(rows)} are "
            "available; lower num-clients or examples-per-client"
        )
    order = np.random.default_rng([seed, _ORDER]).permutation(len(rows))
    shuffled = [rows[i] for i in order]
    if partition == "iid":
        starts = range(0, needed, examples_per_client)
        return tuple(tuple(shuffled[start : start + examples_per_client]) for start in starts)
    topics = sorted({row.topic for row in rows})
    if len(topics) < 2:
        raise DataError(
            "partition = 'dirichlet': needs instructions of two or more topics, there are "
            f"{len(topics)}; set partition = 'iid'"
        )
    left = {topic: [row for row in shuffled if row.topic == topic] for topic in topics}
    return tuple(
        _draw(left, examples_per_client, dirichlet_alpha, np.random.default_rng([seed, _TOPICS, k]))
        for k in range(num_clients)
    )


def hold_out(rows: Sequence[Instruction], size: int, seed: int) -> tuple[Instruction, ...]:
    """Return a sample of ``size`` rows; all of them, as they are, for 0.

    Raises
    ------
    DataError
        If there are too few, or none.
    """
    if not rows:
        raise DataError(
            "there are no held-out instructions; name a file of them with test-file, or take more "
            "instructions: about a fifth is held out"
        )
    if size == 0:
        return tuple(rows)
    if size > len(rows):
        raise DataError(
            f"test-size = {size}: only {len(rows)} held-out instructions are available; 0 takes all"
        )
    order = np.random.default_rng([seed, _TEST]).permutation(len(rows))
    return tuple(rows[i] for i in order[:size])


def _draw(
    left: dict[str, list[Instruction]], size: int, alpha: float, rng: np.random.Generator
) -> tuple[Instruction, ...]:
    """Take ``size`` instructions from those that are left, topic by topic as its share says."""
    topics = list(left)
    shares = rng.dirichlet(np.full(len(topics), alpha))
    drawn = []
    for _ in range(size):
        there = np.array([bool(left[topic]) for topic in topics], dtype=np.float64)
        weights = shares * there
        # A topic that has run out gives its share to the others; if only topics of no share are
        # left, each of them is as good.
        weights = weights if weights.sum() > 0 else there
        topic = topics[rng.choice(len(topics), p=weights / weights.sum())]
        drawn.append(left[topic].pop())
    return tuple(drawn)
