"""What feedback could be worth: the judges by themselves, then a small bench on real answers."""

import numpy as np
import pytest

from feddtpt_flwr.feedback import Feedback, Trial
from simulations import bench_feedback, replay
from simulations.bench_feedback import Prompts, Steered, experience, nobody, truth
from simulations.replay import Recording
from strategies.edits import Edit

GOOD, BAD, START = (1,), (2,), (3,)
EMBEDDINGS = np.eye(6, dtype=np.float32)


@pytest.fixture
def prompts() -> Prompts:
    """Four prompts, of which those with token 1 answer everything correctly, the others nothing."""
    edits = tuple(Edit(0, 1, tokens) for tokens in (GOOD, BAD, (1, 4), (2, 4)))
    correct = np.array([[False] * 4, [True] * 4, [False] * 4, [True] * 4, [False] * 4])
    return Prompts.of([Recording(START, (), edits, correct)], EMBEDDINGS)


def tried(prompt: tuple[int, ...], gain: float) -> Trial:
    return Trial(0, START, prompt, "rewrite", gain, 8, 0.5, accepted=False)


def test_prompts_are_seen_from_any_of_them(prompts: Prompts) -> None:
    seen = prompts.seen_from(2, ())
    assert seen.parent == BAD
    assert set(seen.rows) == set(prompts.tokens)
    for tokens, row in seen.rows.items():
        assert seen.correct[row].all() == (1 in tokens)


def test_experience_with_a_prompt_speaks_for_those_like_it(prompts: Prompts) -> None:
    feedback = Feedback.of([tried(GOOD, 0.5), tried(BAD, -0.5)])
    like_good, like_bad = experience(prompts, [3, 4], START, feedback)
    assert like_good > 0 > like_bad
    assert not experience(prompts, [3, 4], START, Feedback()).any()


@pytest.mark.parametrize("judge", [nobody, experience, truth])
def test_nothing_is_proposed_that_was_tried(judge: bench_feedback.Judge, prompts: Prompts) -> None:
    feedback = Feedback.of([tried(GOOD, 0.5), tried(BAD, -0.5)])
    rng = np.random.default_rng(0)
    edits = Steered(prompts, judge).propose(START, feedback, rng, 8)
    assert {edit.apply(START) for edit in edits} == {(1, 4), (2, 4)}
    if judge is not nobody:
        assert edits[0].apply(START) == (1, 4), "the better one first"


@pytest.mark.slow
def test_the_truth_steers_best(embedded_assets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, number in {"PUBLIC": 2, "TRAIN": 4}.items():
        monkeypatch.setattr(replay, name, number)
    monkeypatch.setattr(bench_feedback, "TASKS", ("rotten_tomatoes",))
    monkeypatch.setattr(bench_feedback, "BUDGETS", (60,))
    result = bench_feedback.run(num_examples=20, num_changes=24, draws=200)
    found = result["tasks"]["rotten_tomatoes"]["searches"]["60"]
    chance, _, best = (found[name]["accuracy"] for name in bench_feedback.JUDGES)
    assert best > chance
    assert found["in random order"]["more"] == [0, 0, 0]
    for judge in found.values():
        assert judge["best_tried"] >= judge["accuracy"]
    table = bench_feedback.markdown(result)
    assert "## rotten_tomatoes" in table
    assert "| 60 | in random order |" in table
