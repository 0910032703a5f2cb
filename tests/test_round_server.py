from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from flwr.common import (
    Code,
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.server import ClientManager, SimpleClientManager
from flwr.server.client_proxy import ClientProxy

from feddtpt_flwr.round_server import RoundServer
from strategies.feddtpt import FedDTPT
from strategies.wire import GAIN_KEY, SCORED_KEY, USED_UP_KEY, correct_key

OK = Status(Code.OK, "")


class Client(ClientProxy):
    """A double of a client that may search in so many rounds and always puts 7 at the end."""

    def __init__(self, cid: str, rounds: int) -> None:
        super().__init__(cid)
        self.left = rounds
        self.searches = 0
        self.manager: ClientManager = SimpleClientManager()

    def fit(self, ins: FitIns, timeout: Any, group_id: Any) -> FitRes:
        self.searches += 1
        if not self.left:
            return FitRes(OK, ins.parameters, 4, {USED_UP_KEY: "cost-per-run"})
        self.left -= 1
        (prompt,) = parameters_to_ndarrays(ins.parameters)
        changed = ndarrays_to_parameters([np.append(prompt[:-1], 7)])
        return FitRes(OK, changed, 4, {GAIN_KEY: 0.25})

    def evaluate(self, ins: EvaluateIns, timeout: Any, group_id: Any) -> EvaluateRes:
        prompts = parameters_to_ndarrays(ins.parameters)
        counts: dict[str, Any] = {correct_key(i): int(p[-1] == 7) for i, p in enumerate(prompts)}
        return EvaluateRes(OK, 0.0, 4, counts | {SCORED_KEY: 4})

    def get_properties(self, *_: Any) -> Any: ...

    def get_parameters(self, *_: Any) -> Any: ...

    def reconnect(self, *_: Any) -> Any: ...


def small_strategy(**settings: Any) -> FedDTPT:
    return FedDTPT(
        initial_prompt=np.array([1, 2]),
        embed_fn=lambda prompts: [np.eye(10)[prompt] for prompt in prompts],
        vocabulary_size=10,
        min_fit_clients=1,
        min_evaluate_clients=1,
        **settings,
    )


@pytest.mark.parametrize(
    ("rounds", "searches", "completed", "over"),
    [
        # The round in which the last client says so is the last one.
        ((1, 1), (2, 2), 2, True),
        ((0, 2), (3, 3), 3, True),
        ((0, 9), (5, 5), 5, False),
    ],
)
def test_a_run_ends_when_nobody_has_anything_left(
    rounds: tuple[int, ...], searches: tuple[int, ...], completed: int, over: bool
) -> None:
    strategy = small_strategy(min_available_clients=2)
    told: list[int] = []
    server = RoundServer(strategy, told.append)
    clients = [Client(str(number), left) for number, left in enumerate(rounds)]
    for client in clients:
        server.client_manager().register(client)
    server.fit(5, None)
    assert tuple(client.searches for client in clients) == searches
    assert told == list(range(completed + 1))
    assert server.over == over
    assert strategy.prompt == (1, 7), "what was found before stays"
    assert strategy.state_dict()["round"] == completed


class Leaving(Client):
    """A double of a client whose node is away for a while after its first search."""

    def fit(self, ins: FitIns, timeout: Any, group_id: Any) -> FitRes:
        if not self.searches:
            self.manager.unregister(self)
        return super().fit(ins, timeout, group_id)


@pytest.mark.parametrize("needed", [1, 2])
def test_a_run_goes_on_with_clients_that_were_away(needed: int) -> None:
    """The one that stayed had used up its limits."""
    strategy = small_strategy(min_available_clients=needed)
    stays, leaves = Client("0", 0), Leaving("1", 9)
    overs: list[bool] = []

    def completed(server_round: int) -> None:
        overs.append(server.over)
        if server_round == 1:
            leaves.manager.register(leaves)

    server = RoundServer(strategy, completed)
    leaves.manager = server.client_manager()
    for client in (stays, leaves):
        leaves.manager.register(client)
    server.fit(2, None)
    assert leaves.searches == 2
    assert not server.over
    assert overs[1] == (needed == 1), "where two are needed, one may be away for a while"


def test_the_seed_says_who_takes_part() -> None:
    def drawn(seed: int, rounds: int, begun: int = 0) -> list[tuple[int, ...]]:
        """Return who searched, one list of clients after each round."""
        clients = [Client(str(number), 99) for number in range(6)]
        seen: list[tuple[int, ...]] = []
        strategy = small_strategy(fraction_fit=0.34)
        server = RoundServer(
            strategy,
            lambda _: seen.append(tuple(client.searches for client in clients)),
            seed=seed,
            begun=begun,
        )
        for client in clients:
            server.client_manager().register(client)
        server.fit(rounds, None)
        return [
            tuple(after - before for after, before in zip(later, earlier, strict=True))
            for earlier, later in pairwise(seen)
        ]

    rounds = drawn(3, 6)
    assert {sum(of_round) for of_round in rounds} == {2}
    assert len(set(rounds)) > 1
    assert drawn(3, 6) == rounds
    assert drawn(4, 6) != rounds
    assert drawn(3, 4, begun=2) == rounds[2:], "a run that goes on draws as one that was not cut"
