import json
from pathlib import Path

import pytest

from simulations import privacy
from simulations.leakage import Leakage, Upload, common_part, measure, new_words, words
from simulations.privacy import CANARIES, plant

TEXTS = {
    "a": ["Zorvath loved the film", "a story of brindlewick"],
    "b": ["the film was a bore", "quillemar left early"],
    "c": ["no film at all"],
}


def uploaded(prompt: str, client: str = "a", sent: str = "Judge the review.") -> Upload:
    return Upload(client, sent, prompt)


def test_words_are_case_folded_and_without_marks() -> None:
    assert words("The film, the FILM: 42!") == {"the", "film", "42"}


def test_only_what_was_not_sent_is_new() -> None:
    assert new_words(uploaded("Judge the film review.")) == {"film"}
    assert new_words(uploaded("Judge the review.")) == set()


def test_a_word_that_everybody_has_is_no_leak() -> None:
    found = measure([uploaded("Judge the film review.")], TEXTS)
    assert (found.new_words, found.in_own, found.in_others) == (1, 1, 1)
    assert found.leak() == 0
    assert (found.own_only, found.others_only) == (0, 0)


def test_a_word_of_ones_own_is_a_leak() -> None:
    found = measure([uploaded("Judge Zorvath.")], TEXTS)
    assert (found.in_own, found.in_others, found.own_only, found.leak()) == (1, 0, 1, 1)


def test_a_word_of_another_client_counts_as_chance() -> None:
    found = measure([uploaded("Judge Quillemar.")], TEXTS)
    assert (found.in_own, found.in_others, found.leak()) == (0, 0.5, -0.5)
    assert (found.own_only, found.others_only) == (0, 0.5)
    assert (found.own_parts, found.others_parts) == (0, 0.5)


def test_parts_of_words_are_found() -> None:
    found = measure([uploaded("Judge brindle.")], TEXTS, canaries={"a": ["Brindlewick"]})
    assert (found.in_own, found.own_only, found.own_parts, found.canaries) == (0, 0, 1, 1)
    assert common_part("zorvathian", frozenset({"zorvath"}))
    assert not common_part("zor", frozenset({"zorvath"})), "too short to tell"


def test_public_words_are_nobodys_own() -> None:
    found = measure([uploaded("Judge Zorvath.")], TEXTS, public=["A film by Zorvath"])
    assert (found.in_own, found.own_only, found.own_parts) == (1, 0, 0)


def test_without_new_words_nothing_can_be_said() -> None:
    assert measure([uploaded("Judge the review.")], TEXTS).leak() is None


def test_counts_add_up() -> None:
    one = measure([uploaded("Judge Zorvath.")], TEXTS)
    two = measure([uploaded("Judge the film.", "b")], TEXTS)
    both = measure([uploaded("Judge Zorvath."), uploaded("Judge the film.", "b")], TEXTS)
    assert one + two == both
    assert sum([one, two], Leakage()).uploads == 2


def test_chance_needs_another_client() -> None:
    with pytest.raises(ValueError, match="2 clients or more"):
        measure([], {"a": ["text"]})


def test_no_canary_looks_like_another_or_like_an_english_word_of_prompts() -> None:
    everyday = words(
        "classify the sentiment of this movie review as positive or negative text word number "
        "given following sentence opinion film story answer question please tell whether critic"
    )
    for index, mine in enumerate(CANARIES):
        others = [word for i, them in enumerate(CANARIES) if i != index for word in them]
        for canary in mine:
            assert not common_part(canary.casefold(), everyday)
            assert not common_part(canary.casefold(), words(" ".join(others)))


def test_canaries_stand_inside_the_text() -> None:
    from feddtpt_flwr.data import ClientData, Example, get_task

    task = get_task("rotten_tomatoes")
    example = Example(task.render({"text": "a dull film"}), 0)
    planted = plant(ClientData((example,) * 5, (example,)), task, ("Zorvath", "42"))
    texts = [e.input for e in planted.train]
    assert texts[0] == task.render({"text": "a dull film Zorvath"})
    assert ["42" in text for text in texts] == [False, True, False, True, False]
    assert [e.label for e in planted.train] == [0] * 5


@pytest.mark.slow
def test_a_run_and_its_table(embedded_assets: None, tmp_path: Path) -> None:
    tiny = {
        "num-server-rounds": 1,
        "k-shot": 1,
        "public-per-class": 1,
        "queries-per-round": 12,
        "test-size": 4,
        "seed-prompt": "Movie review.",
        "dtype": "float32",
    }
    table = privacy.run([0], tmp_path, ["none"], tiny)
    assert "| none | 1 | 4 |" in table
    found = json.loads((tmp_path / "privacy.json").read_text(encoding="utf-8"))
    outcome = found["runs"]["none"]["0"]
    assert outcome["leakage"]["uploads"] == 4
    assert 0 < outcome["queries"] <= 4 * (12 + 5 * 4)
    assert 0 <= outcome["accuracy"] <= 1

    def no_more(*_: object) -> None:
        raise AssertionError("what was run is not run again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(privacy, "run_once", no_more)
        assert privacy.run([0], tmp_path, ["none"], tiny) == table
