import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.language_model.local import LocalLanguageModel
from simulations.grey_box import DIMENSIONS, FedBBT, FedBPT
from simulations.outcome import read_outcome
from simulations.soft_prompt_model import SoftPromptModel
from simulations.soft_prompts import TUNERS, FedPrompt, run, too_few_queries
from simulations.stamp import stamp

PROMPT = "Movie review."


@pytest.fixture(scope="module")
def model(embedded_assets: None, task: Task) -> SoftPromptModel:
    return SoftPromptModel(RunConfig.from_run_config({}), task)


@pytest.mark.slow
def test_the_seed_prompts_vectors_answer_as_its_text(
    model: SoftPromptModel,
    language_model: LocalLanguageModel,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> None:
    examples = short_reviews[:10]
    best = model.log_probs(model.embed(PROMPT), examples).argmax(-1).tolist()
    queries = [task.compose(PROMPT, example.input) for example in examples]
    answers = language_model.answer(queries, task.answers)
    assert [task.answers[label] for label in best] == answers


@pytest.mark.slow
def test_all_move_the_prompt_within_their_budget(
    model: SoftPromptModel, short_reviews: tuple[Example, ...]
) -> None:
    examples = short_reviews[:8]
    start = model.embed(PROMPT)
    for make, budget in ((FedPrompt, 24), (FedBBT, 32), (FedBPT, 32)):
        tuner = make(model, start, 0)
        queries = tuner.round([examples[:4], examples[4:]], budget, np.random.default_rng(0))
        assert 0 < queries <= 2 * budget
        assert tuner.prompt.shape == start.shape
        assert not bool((tuner.prompt == start).all())
        if make is FedPrompt:
            assert model.loss(tuner.prompt, examples) < model.loss(start, examples)


@pytest.mark.slow
def test_a_run_leaves_what_a_suite_reads(embedded_assets: None, tmp_path: Path) -> None:
    settings = {
        "num-server-rounds": 1,
        "k-shot": 1,
        "public-per-class": 1,
        "test-size": 8,
        "queries-per-round": 8,
        "seed-prompt": PROMPT,
        "run-folder": str(tmp_path),
    }
    outcome = read_outcome(run("fedprompt", settings, 2), 1.0, stamp())
    assert [point.queries for point in outcome.curve] == [0, outcome.queries]
    assert outcome.queries == 2 * 8
    assert outcome.num_bytes == (2 * 2 * 4 * outcome.num_parameters,)
    assert outcome.held_out == 8
    assert outcome.last_uploads() == []
    config = json.loads(json.dumps(outcome.config.to_run_config()))
    assert config["seed-prompt"] == PROMPT


@pytest.mark.slow
def test_in_a_chat_they_answer_as_well(
    embedded_assets: None, task: Task, short_reviews: tuple[Example, ...]
) -> None:
    examples = short_reviews[:10]
    config = RunConfig.from_run_config({"chat": True, "dtype": "float32"})
    model = SoftPromptModel(config, task)
    best = model.log_probs(model.embed(PROMPT), examples).argmax(-1).tolist()
    chat = LocalLanguageModel("embedded", chat=True, dtype="float32")
    # A prompt's vectors have the space before it that its words have elsewhere; its text does not.
    queries = [task.compose(PROMPT, example.input) for example in examples]
    answers = chat.answer(queries, task.answers)
    same = [task.answers[label] == answer for label, answer in zip(best, answers, strict=True)]
    assert sum(same) >= 9


def test_fedbpt_moves_towards_the_clients_with_the_least_loss() -> None:
    cma = pytest.importorskip("cma")
    tuner = FedBPT.__new__(FedBPT)
    tuner._step = 1.0
    tuner._global = cma.CMAEvolutionStrategy(
        np.zeros(DIMENSIONS), 1.0, {"popsize": 4, "seed": 1, "verbose": -9}
    )
    good, bad = np.full(DIMENSIONS, 0.1), np.full(DIMENSIONS, -0.1)
    tuner._aggregate([good, good, bad, bad], [0.1, 0.2, 1.0, 1.1], [0.2, 0.2, 0.2, 0.2])
    assert np.asarray(tuner._global.mean) @ good > 0
    assert tuner._step != 1.0


class RecordingDistribution:
    """A double of the server's CMA-ES: notes the step length that it is told with."""

    sigma = 1.0
    told_with = 0.0

    def ask(self) -> None:
        pass

    def tell(self, *_: object, **__: object) -> None:
        self.told_with = self.sigma
        self.sigma *= 0.5


def test_the_servers_step_length_is_the_papers() -> None:
    """Equation (6) of FedBPT: the better half's squared steps, over all clients, times four."""
    tuner = FedBPT.__new__(FedBPT)
    tuner._step, tuner._global = 0.8, RecordingDistribution()
    means = [np.zeros(DIMENSIONS)] * 4
    tuner._aggregate(means, [0.4, 0.1, 0.3, 0.2], [9.0, 0.25, 9.0, 0.11])
    assert tuner._global.told_with == pytest.approx(2 * np.sqrt((0.25 + 0.11) / 4))
    assert tuner._step == pytest.approx(0.4)


@pytest.mark.parametrize(("baseline", "least"), [("fedprompt", 4), ("fedbbt", 16), ("fedbpt", 20)])
def test_a_budget_that_moves_nothing_is_refused(
    baseline: str, least: int, embedded_assets: None, tmp_path: Path
) -> None:
    assert too_few_queries(baseline, least, 4) == ""
    if baseline != "fedprompt":
        assert TUNERS[baseline].generations(least, 4) == (4, 1)
        assert TUNERS[baseline].generations(least - 1, 4)[1] == 0
    settings = {
        "k-shot": 1,
        "public-per-class": 1,
        "test-size": 8,
        "queries-per-round": least - 1,
        "run-folder": str(tmp_path),
    }
    message = f"queries-per-round = {least - 1}: {least} or more are needed for {baseline} on 4 ex"
    with pytest.raises(ConfigError, match=message):
        run(baseline, settings, 2)
    assert not list(tmp_path.iterdir())


def test_fedbpt_needs_other_clients(short_reviews: tuple[Example, ...]) -> None:
    pytest.importorskip("cma")
    with pytest.raises(ConfigError, match="two clients or more"):
        FedBPT.__new__(FedBPT).round([short_reviews[:4]], 100, np.random.default_rng(0))


def test_what_is_no_local_model_is_refused(task: Task) -> None:
    config = RunConfig.from_run_config({"endpoint": "http://127.0.0.1:1", "language-model": "m"})
    with pytest.raises(ConfigError, match="soft prompts need a local model"):
        SoftPromptModel(config, task)


@pytest.mark.slow
def test_a_prompt_may_stand_before_the_text(
    embedded_assets: None,
    language_model: LocalLanguageModel,
    task: Task,
    short_reviews: tuple[Example, ...],
) -> None:
    first = replace(task, template="{prompt}\n{text}")
    model = SoftPromptModel(RunConfig.from_run_config({"dtype": "float32"}), first)
    examples = [
        replace(example, input=f"\n{example.input.strip()}\nSentiment:")
        for example in short_reviews[:6]
    ]
    best = model.log_probs(model.embed(PROMPT), examples).argmax(-1).tolist()
    queries = [first.compose(PROMPT, example.input) for example in examples]
    assert [task.answers[i] for i in best] == language_model.answer(queries, task.answers)


@pytest.mark.slow
def test_others_of_a_batch_change_nothing(
    model: SoftPromptModel, short_reviews: tuple[Example, ...]
) -> None:
    prompt = model.embed(PROMPT)
    together = model.log_probs(prompt, short_reviews[:5]).detach().numpy()
    alone = [
        model.log_probs(prompt, [example]).detach().numpy()[0] for example in short_reviews[:5]
    ]
    np.testing.assert_allclose(together, alone, atol=1e-4)
