"""Differential privacy for what a client sends: a drawn choice and noised counts.

Neighbouring data are a client's examples with one of them replaced. That changes the number of
right answers of a prompt by at most 1, whatever the prompt, so a choice among prompts by these
numbers has sensitivity 1, and the numbers of ``m`` prompts together have L1 sensitivity ``m``. The
prompts to choose among must be the same for all neighbours: they are made without the examples.

The noise comes from OpenDP, which draws it exactly, in integers and rationals, from the operating
system's randomness. A run's seed must not decide it: the server knows the seed.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.feedback import Feedback
from feddtpt_flwr.privacy.ledger import FileLedger, LedgerFile
from feddtpt_flwr.proposer import Proposer
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens

MAX_ATTEMPTS = 50  # to find enough different prompts


def require_opendp() -> None:
    """Check that OpenDP is installed.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if find_spec("opendp") is None:
        raise ConfigError(
            "privacy = 'exponential': the noise comes from OpenDP, which is not installed here; "
            "install it with: pip install 'opendp>=0.14'"
        )


def total_epsilon(config: RunConfig, num_rounds: int) -> float | None:
    """Return the privacy loss of one example after ``num_rounds``; None if nothing bounds it.

    Basic composition: the epsilons of all choices and counts add up, with delta = 0. Numerical
    accountants gain nothing on so few mechanisms: for six of epsilon 0.5 each, Google's
    dp-accounting has 2.99998 at delta = 1e-6 instead of 3.
    """
    return num_rounds * config.epsilon if config.privacy == "exponential" else None


def shares(epsilon: float, *, guard: bool) -> tuple[float, float]:
    """Divide a round's epsilon between the choice of a prompt and the counts for the guard."""
    return (epsilon / 2, epsilon / 2) if guard else (epsilon, 0.0)


def ledger_on_disk(file: LedgerFile, config: RunConfig) -> FileLedger:
    """Return a node's ledger, with what the answers of a run cost."""
    choice, counts = shares(config.epsilon, guard=config.guard)
    return FileLedger(file, {"search": choice, "score": counts}, config.num_server_rounds)


def choose(correct: Sequence[int], epsilon: float) -> int:
    """Draw an index, more likely one of more right answers.

    The exponential mechanism with utility ``correct``, that is weights ``exp(epsilon * correct /
    2)``, in its better form permute-and-flip (McKenna and Sheldon, 2020): at the same epsilon it
    is never further from the best in expectation.

    Parameters
    ----------
    correct : Sequence[int]
        Right answers of each candidate on the same examples; one or more.
    epsilon : float
        Privacy loss of the draw, above 0.
    """
    dp = _opendp()
    space = dp.vector_domain(dp.atom_domain(T="i32")), dp.linf_distance(T="i32")
    draw = dp.m.make_noisy_max(*space, dp.max_divergence(), scale=2 / epsilon)
    return int(draw([int(count) for count in correct]))


def noised(correct: Sequence[int], total: int, epsilon: float) -> list[int]:
    """Return counts with discrete Laplace noise, cut off to ``[0, total]``.

    Parameters
    ----------
    correct : Sequence[int]
        Right answers of each prompt on the same ``total`` examples.
    total : int
        How many examples.
    epsilon : float
        Privacy loss of all counts together, above 0; the noise grows with their number.
    """
    if not correct:
        return []
    dp = _opendp()
    space = dp.vector_domain(dp.atom_domain(T="i32")), dp.l1_distance(T="i32")
    noise = dp.m.make_laplace(*space, scale=len(correct) / epsilon)
    return [min(max(int(count), 0), total) for count in noise([int(count) for count in correct])]


def public_candidates(
    start: Tokens,
    proposer: Proposer,
    evaluator: Evaluator,
    vocabulary: Vocabulary,
    public: Sequence[Example],
    rng: np.random.Generator,
    *,
    num_private: int,
    max_tokens: int,
    admissible: Callable[[Sequence[Tokens]], Sequence[bool]],
) -> list[Tokens]:
    """Return the prompts to choose among, found without any private example, ``start`` first.

    Half of the budget asks about the public set: of the changes proposed, those with the most
    right answers on it stay. Without a public set, the first proposals do.

    Parameters
    ----------
    num_private : int
        Private examples on which each is to be scored with the rest of the budget.
    max_tokens : int
        Longest prompt.
    admissible : Callable[[Sequence[Tokens]], Sequence[bool]]
        Prompts for which it says false are left out.

    Raises
    ------
    ModelError
        If the black box fails.
    """
    budget = evaluator.budget.left
    number = (budget // 2 if public else budget) // num_private
    wanted = max(number - 1, budget // 2 // len(public) if public else 0)
    if number < 2:
        return [start]
    found: dict[Tokens, None] = {}
    for _ in range(MAX_ATTEMPTS):
        if len(found) >= wanted:
            break
        edits = proposer.propose(start, Feedback(), rng, wanted)
        new = dict.fromkeys(edit.apply(start) for edit in edits)
        prompts = [p for p in new if p != start and p not in found and 1 <= len(p) <= max_tokens]
        if prompts:
            kept = zip(prompts, admissible(prompts), strict=True)
            found |= dict.fromkeys(prompt for prompt, ok in kept if ok)
    prompts = list(found)[:wanted]
    if public and len(prompts) >= number:
        prompts = prompts[: budget // 2 // len(public)]
        texts = [vocabulary.decode(prompt) for prompt in prompts]
        right = evaluator.correct_all(texts, public).sum(axis=1)
        prompts = [prompts[i] for i in np.argsort(-right, kind="stable")]
    return [start, *prompts[: number - 1]]


def _opendp() -> Any:
    import opendp.prelude as dp

    # OpenDP's word for mechanisms whose proofs were contributed and reviewed.
    dp.enable_features("contrib")
    return dp
