import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("opendp")

from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.pld.common import DifferentialPrivacyParameters

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.privacy import exponential
from feddtpt_flwr.privacy.exponential import (
    choose,
    noised,
    public_candidates,
    shares,
    total_epsilon,
)
from feddtpt_flwr.proposer import MaskedLMProposer
from feddtpt_flwr.vocabulary import Vocabulary

DRAWS = 4_000


def test_one_example_moves_the_odds_of_a_choice_by_epsilon_at_most() -> None:
    """Also of both candidates at once: one gains an answer, the other loses one."""
    epsilon = 1.0
    here, there = (
        Counter(choose(correct, epsilon) for _ in range(DRAWS)) for correct in ([5, 6], [6, 5])
    )
    for index in (0, 1):
        ratio = here[index] / there[index]
        slack = 1.25  # over 6 standard errors
        assert math.exp(-epsilon) / slack < ratio < math.exp(epsilon) * slack


def test_better_prompts_are_likelier_and_more_so_at_a_larger_epsilon() -> None:
    """At least as likely as by the plain exponential mechanism."""
    correct, last = [10, 14], 0.0
    for epsilon in (0.1, 0.5, 2.0):
        drawn = sum(choose(correct, epsilon) for _ in range(DRAWS)) / DRAWS
        weights = np.exp(epsilon * np.array(correct) / 2)
        assert drawn > weights[1] / weights.sum() - 0.03
        assert drawn > last
        last = drawn
    assert choose([7], 1.0) == 0


def test_counts_get_noise_in_proportion_to_their_number() -> None:
    epsilon, middle = 1.0, 10_000
    for number in (1, 5):
        draws = np.array(
            [noised([middle] * number, 2 * middle, epsilon) for _ in range(DRAWS // number)]
        )
        scale = number / epsilon
        a = math.exp(-1 / scale)
        assert draws.mean() == pytest.approx(middle, abs=scale / 5)
        assert draws.std() == pytest.approx(math.sqrt(2 * a) / (1 - a), rel=0.15)


def test_noised_counts_are_counts() -> None:
    for count in noised([0, 5] * 50, 5, 0.1):
        assert isinstance(count, int)
        assert 0 <= count <= 5
    assert noised([], 5, 1.0) == []


def test_epsilons_add_up() -> None:
    config = RunConfig.from_run_config({"privacy": "exponential", "epsilon": 0.5})
    assert shares(config.epsilon, guard=True) == (0.25, 0.25)
    assert shares(config.epsilon, guard=False) == (0.5, 0)
    assert total_epsilon(config, 3) == 1.5
    assert total_epsilon(RunConfig.from_run_config({}), 3) is None


def test_without_opendp_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    exponential.require_opendp()
    monkeypatch.setattr(exponential, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install 'opendp"):
        exponential.require_opendp()


@pytest.mark.slow
@pytest.mark.parametrize("with_public", [True, False])
def test_candidates_are_found_within_half_of_the_budget(
    with_public: bool,
    infiller: CausalInfiller,
    language_model: LocalLanguageModel,
    vocabulary: Vocabulary,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> None:
    start = vocabulary.encode("Movie review.")

    def candidates(budget: int) -> tuple[list[tuple[int, ...]], int]:
        evaluator = Evaluator(language_model, task, QueryBudget(budget))
        found = public_candidates(
            start,
            MaskedLMProposer(infiller, max_tokens=8),
            evaluator,
            vocabulary,
            short_reviews[:2] if with_public else (),
            np.random.default_rng(3),
            num_private=4,
            max_tokens=8,
            admissible=lambda prompts: [True] * len(prompts),
        )
        return found, evaluator.budget.used

    found, asked = candidates(24)
    assert found[0] == start
    assert len(set(found)) == len(found) == (3 if with_public else 6)
    assert asked <= 12
    assert asked + 4 * len(found) <= 24
    assert all(len(prompt) <= 8 for prompt in found)
    assert candidates(24)[0] == found, "nothing but the seed decides"
    assert candidates(7) == ([start], 0)


def test_a_bad_epsilon_is_named() -> None:
    values: list[Any] = [0.0, -1.0, float("inf"), "much"]
    for value in values:
        with pytest.raises(ConfigError, match="epsilon = "):
            RunConfig.from_run_config({"privacy": "exponential", "epsilon": value})


@pytest.mark.parametrize("num_rounds", [1, 3, 10])
def test_the_sum_of_epsilons_is_what_an_accountant_finds(num_rounds: int) -> None:
    config = RunConfig.from_run_config({"privacy": "exponential", "epsilon": 0.8})
    total = num_rounds * 0.8
    assert total_epsilon(config, num_rounds) == pytest.approx(total)
    composed = None
    for share in shares(0.8, guard=True):
        loss = pld.from_privacy_parameters(DifferentialPrivacyParameters(share, 0.0))
        rounds = loss.self_compose(num_rounds)
        composed = rounds if composed is None else composed.compose(rounds)
    assert composed is not None
    found = composed.get_epsilon_for_delta(1e-9)
    assert 0.99 * total < found <= total + 1e-3
