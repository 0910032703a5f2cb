import numpy as np
import pytest
from numpy.typing import NDArray

from feddtpt_flwr.assets import embedded_encoder
from feddtpt_flwr.encoder import BertEncoder, EncoderEmbedder
from feddtpt_flwr.vocabulary import Vocabulary
from strategies import aggregate

pytestmark = pytest.mark.slow


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_encoder_gives_every_token_a_row(
    embedder: EncoderEmbedder, vocabulary: Vocabulary
) -> None:
    texts = [
        "Classify this movie review.",
        "unbelievably antidisestablishmentarian",
        "a",
        "👍 naïve",
    ]
    prompts = [np.array(vocabulary.encode(text)) for text in texts]
    embedded = embedder.embed(prompts)
    assert [rows.shape for rows in embedded] == [(len(prompt), 387) for prompt in prompts]
    assert all(rows.dtype == np.float32 for rows in embedded)
    for rows in embedded[:3]:
        assert (np.linalg.norm(rows, axis=1) > 0).all()
    assert np.isfinite(embedded[3]).all()
    assert embedder.embed([]) == []


@pytest.mark.parametrize("text", ["a", "Classify this naïve film review! 👍", "good " * 600])
def test_states_are_those_of_transformers(text: str, embedded_assets: None) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = embedded_encoder()
    ids = AutoTokenizer.from_pretrained(folder)(text, truncation=True)["input_ids"]
    with torch.inference_mode():
        theirs = AutoModel.from_pretrained(folder).eval()(torch.tensor([ids])).last_hidden_state[0]
    np.testing.assert_allclose(BertEncoder.read(folder).states(ids), theirs.numpy(), atol=2e-5)


def test_like_words_in_like_places_are_near(
    embedder: EncoderEmbedder, vocabulary: Vocabulary
) -> None:
    texts = ["Classify this movie review", "Judge this movie review", "Judge this kitchen table"]
    one, other, third = embedder.embed([np.array(vocabulary.encode(text)) for text in texts])
    assert cosine(one[-2], other[-2]) > cosine(one[-2], other[-1]) + 0.1
    assert cosine(one[-2], other[-2]) > cosine(one[-2], third[-2]) + 0.1


def test_the_encoder_is_deterministic_and_prompts_do_not_mix(
    embedder: EncoderEmbedder, vocabulary: Vocabulary
) -> None:
    first, second = (np.array(vocabulary.encode(text)) for text in ("good film", "a bad, bad book"))
    together, alone = embedder.embed([first, second]), embedder.embed([second])
    np.testing.assert_allclose(together[1], alone[0], atol=1e-6)


def test_the_longest_prompt_that_is_allowed_can_be_embedded(
    embedder: EncoderEmbedder, vocabulary: Vocabulary
) -> None:
    tokens = np.array(vocabulary.encode("good movie") * 256)
    (rows,) = embedder.embed([tokens])
    assert rows.shape == (512, 387)
    assert np.isfinite(rows).all()


def test_the_tokens_of_a_word_stay_apart_in_the_servers_step(
    embedder: EncoderEmbedder, vocabulary: Vocabulary
) -> None:
    """The encoder reads "classify" as one piece, the prompts' vocabulary as two."""
    texts = ["Classify this movie review.", "Classify this film review.", "Classify the review."]
    prompts = [np.array(vocabulary.encode(text)) for text in texts]
    first, second = embedder.embed(prompts)[0][:2]
    assert cosine(first[:384], second[:384]) > 0.999, "one piece for both"
    assert cosine(first, second) < 0.8
    tokens = aggregate(prompts, embedder.embed(prompts)).tokens
    assert vocabulary.decode(tuple(tokens.tolist())).startswith("Classify")
