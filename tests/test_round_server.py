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
    strategy = FedDTPT(
        initial_prompt=np.array([1, 2]),
        embed_fn=lambda prompts: [np.eye(10)[prompt] for prompt in prompts],
        vocabulary_size=10,
        min_fit_clients=1,
        min_evaluate_clients=1,
        min_available_clients=2,
    )
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
