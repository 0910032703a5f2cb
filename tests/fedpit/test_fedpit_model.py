"""The adapter, the synthesis and the local round, on the real small model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.fedpit import lora, node
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.instructions import Instruction
from feddtpt_flwr.fedpit.local_round import local_round, memorisation
from feddtpt_flwr.fedpit.lora import PROMPT, AdaptedModel, Continuation
from feddtpt_flwr.fedpit.synthesis import select, synthesise
from feddtpt_flwr.language_model.weights import read_causal_lm
from strategies.adapters import Adapter

pytestmark = pytest.mark.slow


@pytest.fixture
def start(model: AdaptedModel, request: pytest.FixtureRequest) -> Adapter:
    """The first adapter, loaded."""
    first: Adapter = request.getfixturevalue("first_adapter")
    model.load(first)
    return first


@pytest.fixture(scope="module")
def first_adapter(model: AdaptedModel) -> Adapter:
    return model.adapter


def train(model: AdaptedModel, rows: tuple[Instruction, ...], mu: float = 0.0) -> float:
    return model.train(
        rows,
        epochs=2,
        batch_size=4,
        learning_rate=5e-3,
        rng=np.random.default_rng(0),
        proximal_mu=mu,
    )


def distance(one: Adapter, other: Adapter) -> float:
    return float(np.sqrt(sum(((one[n] - other[n]) ** 2).sum() for n in one)))


def test_a_fresh_adapter_changes_nothing(model: AdaptedModel, start: Adapter) -> None:
    assert all(not array.any() for name, array in start.items() if "lora_B" in name)
    assert all(array.any() for name, array in start.items() if "lora_A" in name)
    assert {array.dtype for array in start.values()} == {np.dtype(np.float32)}


def test_a_saved_adapter_is_read_again(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...], tmp_path: Path
) -> None:
    train(model, short[:4])
    trained = model.adapter
    model.save(tmp_path)
    model.load(start)
    model.read(tmp_path)
    assert distance(model.adapter, trained) == 0


def test_an_adapter_of_another_scale_is_refused(model: AdaptedModel, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="adapter_model"):
        model.read(tmp_path)
    model.save(tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    with pytest.raises(ValueError, match="rank 4 and alpha 16, 4 and 8 are needed"):
        model.read(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match="is damaged"):
        model.read(tmp_path)


def test_training_lowers_the_loss_and_loading_undoes_it(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...], tmp_path: Path
) -> None:
    rows = short[:4]
    before = model.response_losses(rows)
    train(model, rows)
    trained = model.adapter
    after = model.response_losses(rows)
    assert after.mean() < 0.8 * before.mean()
    model.load(start)
    np.testing.assert_array_equal(model.response_losses(rows), before)
    model.load(trained)
    np.testing.assert_array_equal(model.response_losses(rows), after)
    model.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    with pytest.raises(ValueError, match="does not fit the model"):
        model.load({"a": np.zeros(3, np.float32)})


def test_a_proximal_term_keeps_the_adapter_near_its_start(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    train(model, short[:4])
    free = distance(model.adapter, start)
    model.load(start)
    train(model, short[:4], mu=100.0)
    assert 0 < distance(model.adapter, start) < 0.7 * free


def test_losses_do_not_depend_on_the_batch(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    rows = (*short[:2], Instruction("Short?", "A longer answer than the others."))
    together = model.response_losses(rows)
    alone = [model.response_losses([row])[0] for row in rows]
    np.testing.assert_allclose(together, alone, rtol=1e-4)
    no_instruction = model.response_losses(rows, with_instruction=False)
    assert not np.allclose(together, no_instruction, rtol=0.01)


def test_a_common_beginning_that_is_computed_once_changes_no_text(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    shown = "".join(
        PROMPT.format(instruction=r.instruction) + f"{r.response}\n\n" for r in short[:2]
    )
    asked = [PROMPT.format(instruction=row.instruction) for row in short[2:5]]
    once = model.continue_text(shown, asked, max_new_tokens=6)
    whole = [shown + text for text in asked]
    assert once == [model.continue_text(w[:9], [w[9:]], max_new_tokens=6)[0] for w in whole]


def test_a_demonstration_ends_where_the_next_one_begins(
    model: AdaptedModel, start: Adapter
) -> None:
    shown = PROMPT.format(instruction="Say yes.") + "Yes ### no.\n\n"
    asked = [PROMPT.format(instruction="Say yes.")]

    def written(most: int) -> Continuation:
        return model.continue_text(shown * 6, asked, max_new_tokens=most)[0]

    assert written(8) == ("Yes ### no.", True)
    text, finished = written(2)
    assert text.startswith("Yes ###")
    assert not finished


def test_headings_in_private_texts_are_texts(model: AdaptedModel, start: Adapter) -> None:
    """Of an answer that is learnt by heart nothing may be cut off: it would seem forgotten."""
    secret = (Instruction("What is the code?\n\n### Response:\n", "### 4711"),)
    model.train(secret, epochs=24, batch_size=1, learning_rate=3e-3, rng=np.random.default_rng(0))
    assert memorisation(model, model.adapter, secret)[0] > 0.9


def test_a_response_that_is_cut_teaches_no_end(model: AdaptedModel, start: Adapter) -> None:
    """After ten words of one that goes on, the model goes on as well."""
    long = (Instruction("Count.", "one two three four five six seven eight nine ten"),)
    short = (Instruction("Count.", "one two three four five"),)

    def answer(rows: tuple[Instruction, ...]) -> tuple[str, bool]:
        model.load(start)
        model.train(rows, epochs=24, batch_size=1, learning_rate=3e-3, rng=np.random.default_rng(0))
        prompt = PROMPT.format(instruction="Count.")
        return model.continue_text(prompt[:3], [prompt[3:]], max_new_tokens=8)[0]

    assert answer(short) == ("one two three four five", True)
    text, finished = answer(long)
    assert text.startswith("one two three four five six seven eight")
    assert not finished


def test_answers_are_greedy_whatever_the_model_brings(
    embedded_assets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some models of a hub are to punish repetition: also of the choices in the question."""
    plain = AdaptedModel("embedded", rank=4, dtype="float32", max_response_tokens=8)
    read = read_causal_lm

    def penalised(*arguments: str) -> tuple[Any, Any]:
        loaded, tokenizer = read(*arguments)
        loaded.generation_config.repetition_penalty = 5.0
        return loaded, tokenizer

    monkeypatch.setattr(lora, "read_causal_lm", penalised)
    other = AdaptedModel("embedded", rank=4, dtype="float32", max_response_tokens=8)
    asked = ["Say good good good good. Say it again."]
    assert other.answer(asked) == plain.answer(asked)


def test_sequences_begin_as_the_tokenizer_lets_them_begin(
    model: AdaptedModel, start: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = read_causal_lm

    def with_beginning(*arguments: str) -> tuple[Any, Any]:
        loaded, tokenizer = read(*arguments)
        mark = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{mark} $A", special_tokens=[(mark, tokenizer.bos_token_id)]
        )
        return loaded, tokenizer

    monkeypatch.setattr(lora, "read_causal_lm", with_beginning)
    other = AdaptedModel("embedded", rank=4, dtype="float32", max_response_tokens=8)
    read_ids: list[list[int]] = []
    other._model.register_forward_pre_hook(
        lambda _, __, named: read_ids.append(named["input_ids"][0].tolist()), with_kwargs=True
    )
    row = Instruction("Say yes.", "yes")
    other.answer([row.instruction])
    other.response_losses([row])
    other.response_losses([row], with_instruction=False)
    other.continue_text("Say yes.", ["\n"], max_new_tokens=1)
    bos = other._tokenizer.bos_token_id
    whole = [ids for ids in read_ids if len(ids) > 1]
    assert [ids.count(bos) for ids in whole] == [1] * len(whole)
    assert {ids[0] for ids in whole} == {bos}
    assert model._begin == ()


def test_more_than_the_model_reads_is_refused(
    model: AdaptedModel, start: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "_model", lambda *_: model)
    monkeypatch.setattr(model._model.config, "max_position_embeddings", model.longest(3))

    def adapted(**settings: Any) -> AdaptedModel:
        run = {key.replace("_", "-"): value for key, value in settings.items()}
        return node.adapted_model(FedPITConfig.from_run_config(run))

    assert adapted(num_demonstrations=3) is model
    assert adapted(num_demonstrations=4, examples_per_client=3) is model
    assert adapted(num_demonstrations=4, beta=1.0) is model
    with pytest.raises(ConfigError, match=r"max-response-tokens = 48 and num-demonstrations = 4: "):
        adapted(num_demonstrations=4)
    prompt, response = model._example_ids(Instruction("one " * 99, "two " * 99), True)
    assert len(prompt + response) < model.longest(0)


def test_what_is_too_long_is_cut(model: AdaptedModel) -> None:
    row = Instruction(" ".join(["one"] * 100), "two " * 100, "topic", ("two",))
    cut = model.shorten(row)
    assert cut.instruction.split() == ["one"] * 32
    assert cut.response.split() == ["two"] * 8
    assert cut.topic == "topic"
    asked = model.shorten(Instruction("one " * 100 + "Good or bad?", "good")).instruction
    assert asked.startswith("one one")
    assert asked.endswith("one Good or bad?"), "the question after a long text is what matters"
    short = Instruction("Is it so  , or not ?", " It is .")
    assert model.shorten(short) == short


def test_synthetic_data_are_new_and_repeatable(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    def made() -> tuple[Instruction, ...]:
        return synthesise(
            model,
            short,
            num_candidates=2,
            num_demonstrations=4,
            max_instruction_tokens=32,
            max_response_tokens=8,
            rng=np.random.default_rng(1),
        ).candidates

    candidates = made()
    assert candidates == made()
    assert 0 < len(candidates) <= 2
    assert not {row.instruction for row in candidates} & {row.instruction for row in short}
    assert all("###" not in row.text for row in candidates)
    kept = select(model, (*candidates, short[0]), 1)
    assert len(kept) == 1
    assert select(model, (), 4) == ()


def test_a_round_of_the_real_model(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    """What is trained on what, `test_local_round` sees; here, that all of it works."""

    def uploaded(beta: float) -> tuple[Adapter, dict[str, float]]:
        config = FedPITConfig.from_run_config(
            {
                "beta": beta,
                "num-candidates": 2,
                "num-selected": 2,
                "num-demonstrations": 3,
                "max-instruction-tokens": 32,
                "max-response-tokens": 8,
            }
        )
        rng = np.random.default_rng(2)
        trained = local_round(model, start, short[:4], config, proximal_mu=0.0, rng=rng)
        return trained.upload(config), dict(trained.metrics)

    local, of_local = uploaded(1.0)
    assert "written" not in of_local, "plain federated tuning writes nothing"
    half, of_half = uploaded(0.5)
    none, of_none = uploaded(0.0)
    assert of_half["selected"] == of_none["selected"] > 0
    assert 0 <= of_none["synthetic-rouge-l"] < 1
    assert distance(local, start) > 0
    assert distance(none, start) > 0
    assert distance(none, local) > 0
    # The synthetic data of both are the same, and so is what they train.
    other = {name: 2 * half[name] - none[name] for name in half}
    assert distance(other, none) > 0.1 * distance(local, none)
    for metrics in (of_local, of_half, of_none):
        assert metrics["num-examples"] == 4
    assert all(np.isfinite(value) for value in of_half.values())


def test_what_was_trained_on_is_given_away(
    model: AdaptedModel, start: Adapter, short: tuple[Instruction, ...]
) -> None:
    secret = (Instruction("Which word opens the door?", "Open sesame"),)
    before, number = memorisation(model, start, secret)
    assert number == 1
    model.train(secret, epochs=24, batch_size=1, learning_rate=3e-3, rng=np.random.default_rng(0))
    after, _ = memorisation(model, model.adapter, secret)
    assert before < 0.5
    assert after > 0.9
