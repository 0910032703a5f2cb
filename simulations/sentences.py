"""The movie reviews on which the benchmarks ask."""

from feddtpt_flwr.data import Example, Task, get_source, load_federated_data


def held_out(task: Task, number: int) -> tuple[Example, ...]:
    """Return ``number`` held-out examples of ``task``, always the same ones."""
    data = load_federated_data(
        task,
        get_source(task.name, None),
        num_clients=1,
        k_shot=1,
        public_per_class=0,
        test_size=number,
        partition="iid",
        dirichlet_alpha=1.0,
        seed=0,
    )
    return tuple(data.test)
