from pathlib import Path

import numpy as np
import pytest
import torch

from feddtpt_flwr import models
from feddtpt_flwr.assets import embedded_language_model
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Task
from feddtpt_flwr.language_model.weights import load_causal_lm
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.masked_lm.base import centred_unit_rows
from feddtpt_flwr.masked_lm.bert import HuggingFaceMaskedLM
from feddtpt_flwr.masked_lm.causal import FINALISTS, CausalInfiller
from feddtpt_flwr.memory import Memory
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens


@pytest.fixture(scope="module")
def bert(tiny_bert: Path) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(str(tiny_bert), excluded_words=("positive",), device="cpu")


def gap(model: MaskedLM, left: str, right: str) -> list[str]:
    vocabulary = model.vocabulary
    [fillings] = model.fill([(encode(vocabulary, left), encode(vocabulary, right))])
    return [vocabulary.decode([int(token)]) for token in fillings.tokens]


def encode(vocabulary: Vocabulary, text: str) -> Tokens:
    return vocabulary.encode(text) if text else ()


GAPS = [("this", "review"), ("", "the movie"), ("Classify", ""), ("", ""), ("Is it", ", or not?")]


@pytest.mark.parametrize(("left", "right"), GAPS)
@pytest.mark.parametrize("which", ["infiller", "bert"])
def test_fillings_are_a_distribution_over_allowed_tokens(
    which: str, left: str, right: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    vocabulary = model.vocabulary
    sides = encode(vocabulary, left), encode(vocabulary, right)
    [fillings] = model.fill([sides])
    assert fillings.tokens.shape == fillings.log_probs.shape == (model._num_candidates,)
    assert fillings.tokens.dtype == np.int64
    assert np.exp(fillings.log_probs).sum() == pytest.approx(1, abs=1e-5)
    assert (np.diff(fillings.log_probs) <= 0).all(), "most likely first"
    assert len(set(fillings.tokens.tolist())) == model._num_candidates
    assert vocabulary.proposable(["positive"])[fillings.tokens].all()
    model._fillings = Memory(model._fill)  # that remembers nothing
    [again] = model.fill([sides])
    assert again.tokens.tolist() == fillings.tokens.tolist()
    # Some keys and values are cached now, and others are computed together.
    np.testing.assert_allclose(again.log_probs, fillings.log_probs, atol=1e-4)


def test_of_a_context_that_is_too_long_what_is_next_to_the_gap_counts(
    bert: HuggingFaceMaskedLM,
) -> None:
    word, left, right = (encode(bert.vocabulary, text) for text in ("film", "it is a", "review"))
    near = (*word * bert._room, *left)[-(bert._room - len(right)) :]
    [long], [short] = bert.fill([(word * 1000 + left, right)]), bert.fill([(near, right)])
    assert long.tokens.tolist() == short.tokens.tolist()


def test_a_task_in_another_language_is_given_its_words(task: Task, embedded_assets: None) -> None:
    def words(seed_prompt: str) -> set[str]:
        config = RunConfig.from_run_config({"seed-prompt": seed_prompt, "dtype": "float32"})
        vocabulary = models.masked_lm(config, task).vocabulary
        allowed = np.flatnonzero(vocabulary.proposable())
        return {vocabulary.decode([int(token)]) for token in allowed}

    assert all(word.isascii() for word in words("Is this film good?"))
    assert "für" in words("Für wen ist dieser Film?") - words("Is this film good?")


def test_a_movie_word_fits_before_review(infiller: CausalInfiller) -> None:
    words = gap(infiller, "Classify the sentiment of this", "review as good or bad.")
    about_art = {"movie", "film", "book", "product", "music", "game", "restaurant", "hotel"}
    assert about_art & set(words[:6])


@pytest.mark.parametrize(
    ("left", "right", "word"),
    [
        ("The capital of France is", ".", "Paris"),
        ("Once upon a", ", there was a king", "time"),
        ("Monday, Tuesday,", ", Thursday", "Wednesday"),
    ],
)
def test_the_obvious_word_is_among_the_first(
    left: str, right: str, word: str, infiller: CausalInfiller
) -> None:
    assert word in gap(infiller, left, right)[:3]


def test_the_right_context_counts(infiller: CausalInfiller) -> None:
    """The same words fit on the left; what follows makes one of them likelier."""
    vocabulary = infiller.vocabulary
    (eat,) = vocabulary.encode("eat")

    def log_prob_of_eat(right: str) -> float:
        [fillings] = infiller.fill([(vocabulary.encode("He wants to"), encode(vocabulary, right))])
        return float(fillings.log_probs[fillings.tokens == eat].item())

    assert log_prob_of_eat("a slice of bread") > log_prob_of_eat("") + 1
    assert log_prob_of_eat("a slice of bread") > log_prob_of_eat("a song") + 1


def test_the_infillers_scores_are_those_of_plain_forward_passes(infiller: CausalInfiller) -> None:
    """Without a prefix tree and one candidate at a time."""
    vocabulary = infiller.vocabulary
    left, right = encode(vocabulary, "Classify this"), encode(vocabulary, "review as good")
    right = right[: infiller._right_tokens]
    [fillings] = infiller.fill([(left, right)])
    begin = [*infiller._frame, *left]
    plain, _ = load_causal_lm("embedded", "cpu", "float32")
    near, rest = [], []
    for token in fillings.tokens.tolist():
        ids = [*begin, token, *right]
        with torch.inference_mode():
            logits = plain(torch.tensor([ids])).logits[0]
        log_probs = torch.log_softmax(logits.float(), -1)
        parts = [float(log_probs[place - 1, ids[place]]) for place in range(len(begin), len(ids))]
        near.append(sum(parts[:2]))  # its own and the next token's
        rest.append(sum(parts[2:]))
    finalists = np.argsort(near)[-FINALISTS:]
    worst = min(rest[row] for row in finalists)
    totals = [n + (rest[row] if row in finalists else worst) for row, n in enumerate(near)]
    expected = torch.log_softmax(torch.tensor(totals), 0).numpy()
    np.testing.assert_allclose(fillings.log_probs, expected, atol=1e-3)


@pytest.mark.parametrize("which", ["infiller", "bert"])
def test_a_log_likelihood_is_that_of_tokens(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    tokens = model.vocabulary.encode("Classify this movie review.")
    [whole] = model.log_likelihood([tokens])
    assert -100 * len(tokens) < whole < 0
    among_others = model.log_likelihood([tokens[:2], tokens, tokens[1:]])
    assert among_others[1] == pytest.approx(whole, abs=1e-3)


def test_language_is_likelier_than_a_heap_of_words(infiller: CausalInfiller) -> None:
    texts = (
        "Classify the sentiment of this movie review.",
        "review the movie sentiment. of Classify this",
    )
    fluent, heap = infiller.log_likelihood([infiller.vocabulary.encode(text) for text in texts])
    assert fluent > heap + 5


def test_the_log_likelihood_grows_token_by_token(infiller: CausalInfiller) -> None:
    tokens = infiller.vocabulary.encode("Judge this review")
    ids = torch.tensor([[*infiller._frame, *tokens]])
    plain, _ = load_causal_lm("embedded", "cpu", "float32")
    with torch.inference_mode():
        log_probs = torch.log_softmax(plain(ids).logits[0].float(), -1)
    start = len(infiller._frame)
    steps = [float(log_probs[start + i - 1, token]) for i, token in enumerate(tokens)]
    for length in range(1, len(tokens) + 1):
        assert infiller.log_likelihood([tokens[:length]])[0] == pytest.approx(
            sum(steps[:length]), abs=1e-3
        )


@pytest.mark.parametrize("word", ["paris", "PARIS", "Paris"])
def test_an_excluded_word_is_never_proposed(word: str, embedded_assets: None) -> None:
    model = CausalInfiller("embedded", excluded_words=(word,), dtype="float32", device="cpu")
    assert "paris" not in [w.casefold() for w in gap(model, "The capital of France is", ".")]


@pytest.mark.parametrize("which", ["infiller", "bert"])
def test_token_embeddings_are_unit_rows(which: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(which)
    rows = model.token_embeddings
    assert rows.shape[0] == len(model.vocabulary)
    assert rows.dtype == np.float32
    norms = np.linalg.norm(rows, axis=1)
    assert ((abs(norms - 1) < 1e-3) | (norms < 1e-3)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_own_embeddings_stay(dtype: torch.dtype) -> None:
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 3.0], [-1.0, -1.0]], dtype=dtype)
    before = weight.clone()
    rows = centred_unit_rows(weight)
    assert torch.equal(weight, before)
    assert rows == pytest.approx(
        np.array([[1, 0], [0, 0], [0, 1], [-1, -1]]) / np.array([[1], [1], [1], [2**0.5]]),
        abs=1e-6,
    )


def test_embeddings_of_like_words_are_near(infiller: CausalInfiller) -> None:
    (movie,), (film,), (bread,) = (
        infiller.vocabulary.encode(word) for word in ("movie", "film", "bread")
    )
    rows = infiller.token_embeddings
    assert rows[movie] @ rows[film] > rows[movie] @ rows[bread] + 0.1


def test_bert_reads_both_sides_of_the_gap(bert: HuggingFaceMaskedLM) -> None:
    """As the model itself answers about its mask, with nothing but the special tokens added."""
    left, right = bert.vocabulary.encode("this movie"), bert.vocabulary.encode("is good")
    tokenizer, model = bert._tokenizer, bert._model
    text = f"this movie {tokenizer.mask_token} is good"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    place = ids[0].tolist().index(tokenizer.mask_token_id)
    with torch.inference_mode():
        logits = model(ids).logits[0, place].numpy()
    allowed = bert.vocabulary.proposable(["positive"])
    expected = np.argsort(-np.where(allowed, logits, -np.inf))[:24]
    assert bert.fill([(left, right)])[0].tokens.tolist() == expected.tolist()


def test_bert_reads_few_sequences_at_once_where_memory_is_short(
    tiny_bert: Path, bert: HuggingFaceMaskedLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [bert.vocabulary.encode(text) for text in ("good film", "a very good film")]
    gaps = [(prompts[0], ()), (prompts[1][:2], prompts[1][3:])]
    monkeypatch.setattr("feddtpt_flwr.masked_lm.bert.MAX_LOGITS", 1)
    short = HuggingFaceMaskedLM(str(tiny_bert), excluded_words=("positive",), device="cpu")
    found = short.log_likelihood(prompts)
    np.testing.assert_allclose(found, bert.log_likelihood(prompts), rtol=1e-5)
    for one, other in zip(short.fill(gaps), bert.fill(gaps), strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)


def test_bert_embeds_every_token(bert: HuggingFaceMaskedLM) -> None:
    prompts = [
        np.array(bert.vocabulary.encode(text)) for text in ("this movie", "a", "good film !")
    ]
    embedded = bert.embed(prompts)
    assert [rows.shape for rows in embedded] == [(2, 32), (1, 32), (3, 32)]
    assert all(rows.dtype == np.float32 for rows in embedded)
    alone = bert.embed(prompts[2:])[0]
    np.testing.assert_allclose(embedded[2], alone, atol=1e-5)
    other = bert.embed([np.array(bert.vocabulary.encode("bad film !"))])[0]
    assert not np.allclose(other[1], alone[1]), "the context counts"


def test_a_causal_language_model_fills_gaps_as_the_embedded_one_does(
    infiller: CausalInfiller, task: Task, tiny_bert: Path, tmp_path: Path
) -> None:
    """By a file, and by a folder whose weights are random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    infiller_tokenizer = load_causal_lm("embedded", "cpu", "float32")[1]
    infiller_tokenizer.save_pretrained(tmp_path)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    sizes = LlamaConfig(vocab_size=len(infiller.vocabulary), num_hidden_layers=1, **size)
    LlamaForCausalLM(sizes).save_pretrained(tmp_path)
    settings = {"dtype": "float32", "device": "cpu"}
    made = {
        name: models.masked_lm(RunConfig.from_run_config({**settings, "masked-lm": name}), task)
        for name in (str(embedded_language_model()), str(tmp_path), str(tiny_bert))
    }
    file, folder, bert = made.values()
    assert isinstance(bert, HuggingFaceMaskedLM)
    for model in (file, folder):
        assert isinstance(model, CausalInfiller)
        assert model.vocabulary.fingerprint == infiller.vocabulary.fingerprint
        assert len(gap(model, "Classify this", "review")) == 16
    sides = [(encode(infiller.vocabulary, "Is it"), encode(infiller.vocabulary, "or not?"))]
    assert file.fill(sides)[0].tokens.tolist() == infiller.fill(sides)[0].tokens.tolist()
