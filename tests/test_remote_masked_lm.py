import re
import shutil
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feddtpt_flwr.language_model.base import FatalModelError, ModelUnavailableError
from feddtpt_flwr.masked_lm.bert import HuggingFaceMaskedLM
from feddtpt_flwr.masked_lm.remote import ATTEMPTS, RemoteMaskedLM
from feddtpt_flwr.tokenizer_file import load_tokenizer
from feddtpt_flwr.vocabulary import Vocabulary
from tests.fill_mask_server import (
    Fault,
    FillMaskService,
    cut_off,
    hang_up,
    say,
    status,
    trickle,
)

KEY_ENV = "TEST_MASKED_LM_KEY"
SENTENCES = [
    "Classify the sentiment of this movie review.",
    "Is it good, or not? Say yes.",
    "unbelievably antidisestablishmentarian prose",
]


@pytest.fixture(scope="module")
def local(tiny_bert: Path) -> HuggingFaceMaskedLM:
    return HuggingFaceMaskedLM(str(tiny_bert), excluded_words=("positive",), device="cpu")


@pytest.fixture
def service(
    fill_mask_service: FillMaskService, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FillMaskService]:
    monkeypatch.setenv(KEY_ENV, fill_mask_service.key)
    fill_mask_service.questions.clear()
    fill_mask_service.headers.clear()
    fill_mask_service.waits.clear()
    monkeypatch.setattr("tenacity.nap.time.sleep", fill_mask_service.waits.append)
    yield fill_mask_service
    fill_mask_service.faults.clear()


def connect(service: FillMaskService, folder: Path, **options: Any) -> RemoteMaskedLM:
    options = {"key_env": KEY_ENV, "excluded_words": ("positive",), **options}
    return RemoteMaskedLM(service.url, str(folder), **options)


@pytest.fixture
def remote(service: FillMaskService, tiny_bert: Path) -> RemoteMaskedLM:
    return connect(service, tiny_bert)


def test_no_proxy_sees_what_is_for_this_machine(
    service: FillMaskService, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # and not deleted: so it is put back in any case
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    remote = connect(service, tiny_bert)
    remote.fill([(remote.vocabulary.encode("a film"), ())])
    assert service.questions


def test_both_speak_the_same_vocabulary(remote: RemoteMaskedLM, local: HuggingFaceMaskedLM) -> None:
    ours, theirs = remote.vocabulary, local.vocabulary
    assert ours.fingerprint == theirs.fingerprint
    assert len(ours) == len(theirs)
    assert (ours.proposable(["positive"]) == theirs.proposable(["positive"])).all()
    for text in SENTENCES:
        tokens = ours.encode(text)
        assert tokens == theirs.encode(text)
        assert ours.decode(tokens) == theirs.decode(tokens)
        assert ours.spans(tokens) == theirs.spans(tokens)


@pytest.mark.parametrize("text", SENTENCES)
def test_it_proposes_what_the_local_model_proposes(
    text: str, remote: RemoteMaskedLM, local: HuggingFaceMaskedLM
) -> None:
    tokens = remote.vocabulary.encode(text)
    for start, stop in remote.vocabulary.words(tokens):
        gap = tokens[:start], tokens[stop:]
        [here], [there] = remote.fill([gap]), local.fill([gap])
        assert here.tokens.tolist() == there.tokens.tolist()
        np.testing.assert_allclose(here.log_probs, there.log_probs, atol=1e-3)


@pytest.mark.parametrize("text", SENTENCES[:2])
def test_it_judges_language_like_the_local_model(
    text: str, remote: RemoteMaskedLM, local: HuggingFaceMaskedLM
) -> None:
    tokens = remote.vocabulary.encode(text)
    assert remote.log_likelihood([tokens]) == pytest.approx(
        local.log_likelihood([tokens]), abs=1e-2
    )


def test_a_word_of_many_pieces_is_judged_roughly(
    remote: RemoteMaskedLM, local: HuggingFaceMaskedLM
) -> None:
    """With one piece masked, the rest of the word is split in another way by the service."""
    tokens = remote.vocabulary.encode(SENTENCES[2])
    assert remote.log_likelihood([tokens]) == pytest.approx(
        local.log_likelihood([tokens]), rel=0.05
    )


def test_nothing_is_asked_twice(remote: RemoteMaskedLM, service: FillMaskService) -> None:
    tokens = remote.vocabulary.encode(SENTENCES[0])
    remote.log_likelihood([tokens])
    remote.fill([(tokens[:3], tokens[4:])])
    asked = len(service.questions)
    assert asked == len(tokens) + 1
    remote.log_likelihood([tokens])
    remote.fill([(tokens[:3], tokens[4:])])
    assert len(service.questions) == asked


def test_where_tokens_lie_is_not_known(remote: RemoteMaskedLM) -> None:
    assert remote.token_embeddings is None


def test_the_first_tokens_may_all_be_pieces(service: FillMaskService, tiny_bert: Path) -> None:
    remote = connect(service, tiny_bert)
    pieces = [i for i in range(len(remote.vocabulary)) if not remote.vocabulary.starts_word(i)]
    service.faults.append(
        say([{"score": 0.01, "token": i, "token_str": "?", "sequence": ""} for i in pieces[:96]])
    )
    assert len(remote.fill([((), ())])[0].tokens) == 24
    assert [q["parameters"]["top_k"] for q in service.questions] == [96, 768]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_tokenizer_is_a_folder_or_a_file(
    kind: str, tiny_bert: Path, wordpiece: Vocabulary
) -> None:
    source = tiny_bert if kind == "folder" else tiny_bert / "tokenizer.json"
    assert Vocabulary(load_tokenizer(str(source))).fingerprint == wordpiece.fingerprint


def test_long_texts_are_not_cut(tiny_bert: Path) -> None:
    """The file asks for padding to 128 tokens and cutting after them, as encoders' often do."""
    tokenizer = load_tokenizer(str(tiny_bert))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    vocabulary = Vocabulary(tokenizer)
    assert len(vocabulary.encode("movie " * 300)) == 300
    assert len(vocabulary.encode("movie")) == 1


def test_a_tokenizer_that_is_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"no tokenizer.json of that name can be had"):
        load_tokenizer("somebody/something")
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer.json is no tokenizer.json"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_without_a_mask(service: FillMaskService, tiny_bert: Path) -> None:
    from tokenizers import Tokenizer, models

    file = tiny_bert.parent / "maskless.json"
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(file))
    with pytest.raises(ValueError, match="has no mask token"):
        connect(service, file)


def test_a_key_that_is_not_set(service: FillMaskService, tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match=r"'NOT_SET'.*not set"):
        connect(service, tiny_bert, key_env="NOT_SET")


def test_a_key_that_is_refused_is_not_shown(
    service: FillMaskService, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "a-wrong-secret")
    remote = connect(service, tiny_bert)
    with pytest.raises(FatalModelError, match=f"refuses the key in {KEY_ENV}") as caught:
        remote.fill([((), ())])
    assert len(service.questions) == 1, "no second try with a key that is refused"
    assert "a-wrong-secret" not in "".join(traceback.format_exception(caught.value))


def test_a_saved_hugging_face_token_is_not_sent(
    service: FillMaskService, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_saved")
    remote = connect(service, tiny_bert, key_env="")
    with pytest.raises(FatalModelError, match="refuses questions without a key"):
        remote.fill([((), ())])
    assert "authorization" not in service.headers[0]


@pytest.mark.parametrize(
    "fault",
    [
        status(503),
        status(429, Retry_After="0"),
        status(409),
        status(500),
        status(524),
        hang_up,
        cut_off,
    ],
)
def test_a_fault_that_passes_is_not_noticed(
    fault: Fault, remote: RemoteMaskedLM, service: FillMaskService
) -> None:
    service.faults += [fault, fault]
    assert len(remote.fill([((), ())])[0].tokens) == 24
    assert len(service.questions) == 3


@pytest.mark.parametrize(
    ("fault", "words"),
    [(status(503), "HTTP 503"), (hang_up, "RemoteProtocolError"), (cut_off, "")],
)
def test_a_fault_that_stays(
    fault: Fault, words: str, remote: RemoteMaskedLM, service: FillMaskService
) -> None:
    service.faults += [fault] * ATTEMPTS
    with pytest.raises(ModelUnavailableError, match=f"no answer after {ATTEMPTS} tries.*{words}"):
        remote.fill([((), ())])


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(402), "the account is used up (HTTP 402)"),
        (status(404), "HTTP 404"),
        (status(422), "HTTP 422"),
        (say({"generated_text": "movie"}), "not one of the fill-mask task"),
        (say([{"label": "POSITIVE", "score": 0.9}]), "not one of the fill-mask task"),
        (say([{"score": 0.9, "token": 3185, "token_str": "kitchen"}]), "is 'kitchen' there"),
        (say([]), "whole word"),
    ],
)
def test_what_asking_again_cannot_mend(
    fault: Fault, words: str, remote: RemoteMaskedLM, service: FillMaskService
) -> None:
    service.faults.append(fault)
    with pytest.raises(FatalModelError, match=re.escape(words)) as caught:
        remote.fill([((), ())])
    assert service.url in str(caught.value)
    assert len(service.questions) == 1


def test_a_redirect_is_not_followed(remote: RemoteMaskedLM, service: FillMaskService) -> None:
    service.faults.append(status(307, Location=service.url))
    with pytest.raises(FatalModelError, match=r"sends to another address \(HTTP 307\)"):
        remote.fill([((), ())])
    assert len(service.questions) == 1


def test_a_slow_trickle_is_given_up(service: FillMaskService, tiny_bert: Path) -> None:
    remote = connect(service, tiny_bert, timeout=1.0, attempts=2)
    service.faults += [trickle, trickle]
    begin = time.monotonic()
    with pytest.raises(ModelUnavailableError, match=r"after 2 tries \(TimeoutError\)"):
        remote.fill([((), ())])
    assert time.monotonic() - begin < 4


def test_what_was_answered_before_a_failure_is_not_asked_again(
    service: FillMaskService, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = connect(service, tiny_bert, concurrency=1, attempts=1)
    gaps = [((), ()), (remote.vocabulary.encode("a good film"), ())]
    real = remote._ask

    def ask(text: str, **parameters: Any) -> Any:
        if "good" in text and not service.faults:
            service.faults.append(status(503))
        return real(text, **parameters)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_ask", ask)
        with pytest.raises(ModelUnavailableError):
            remote.fill(gaps)
    remote.fill(gaps)
    assert len(service.questions) == 3, "only the one that failed is asked again"


def test_a_service_that_ignores_targets(remote: RemoteMaskedLM, service: FillMaskService) -> None:
    service.faults.append(say([{"score": 0.9, "token": 5, "token_str": "x"}]))
    with pytest.raises(FatalModelError, match="must understand 'targets'"):
        remote.log_likelihood([remote.vocabulary.encode("movie")])


def test_a_service_that_says_when_is_obeyed(
    remote: RemoteMaskedLM, service: FillMaskService
) -> None:
    service.faults.append(status(429, Retry_After="17"))
    remote.fill([((), ())])
    assert service.waits == [17]


def test_a_service_that_wants_an_hour_is_not_waited_for(
    remote: RemoteMaskedLM, service: FillMaskService
) -> None:
    service.faults.append(status(429, Retry_After="3600"))
    with pytest.raises(ModelUnavailableError, match=r"after 1 tries \(HTTP 429\)"):
        remote.fill([((), ())])
    assert service.waits == []


def test_nobody_listens(tiny_bert: Path, service: FillMaskService) -> None:
    nobody = FillMaskService("http://127.0.0.1:9/fill", "")
    with pytest.raises(ModelUnavailableError, match="ConnectError"):
        connect(nobody, tiny_bert).fill([((), ())])


def test_offline_mode_is_explained(remote: RemoteMaskedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FatalModelError, match="HF_HUB_OFFLINE"):
        remote.fill([((), ())])


def test_a_byte_level_vocabulary_is_the_same_without_transformers(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    vocabulary._tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(tmp_path / "tokenizer.json", tmp_path / "other.json")
    again = Vocabulary(load_tokenizer(str(tmp_path / "other.json")))
    assert again.fingerprint == vocabulary.fingerprint
    assert again.encode(SENTENCES[1]) == vocabulary.encode(SENTENCES[1])
