import json
from pathlib import Path
from typing import Any

import numpy as np

from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import Evaluator
from feddtpt_flwr.language_model.local import LocalLanguageModel
from feddtpt_flwr.recorder import Recorder
from feddtpt_flwr.run_folder import RunFolder
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Candidate
from strategies.rounds import RoundResult
from strategies.wire import CLIENT_KEY, QUERIES_KEY, ROUND_KEY

SEARCH: dict[str, Any] = {CLIENT_KEY: "0", ROUND_KEY: 2, QUERIES_KEY: 30, "candidates": 3}


def recorder(
    settings: dict[str, Any],
    folder: Path,
    task: Task,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    examples: tuple[Example, ...],
) -> Recorder:
    return Recorder(
        RunConfig.from_run_config(settings),
        task,
        vocabulary,
        Evaluator(language_model, task, QueryBudget(10)),
        examples,
        RunFolder(folder, "run"),
        language_model.name,
    )


def test_the_epsilon_spent_is_written_down(
    tmp_path: Path,
    task: Task,
    vocabulary: Vocabulary,
    language_model: LocalLanguageModel,
    short_reviews: tuple[Example, ...],
) -> None:
    settings = {"privacy": "exponential", "epsilon": 0.75}
    parts = (task, vocabulary, language_model, short_reviews[:2])
    private = recorder(settings, tmp_path, *parts)
    prompt = vocabulary.encode("Movie review.")
    for server_round in range(3):
        private.evaluate(server_round, [np.array(prompt)], {})
    assert private.fit_metrics([(4, SEARCH)])[QUERIES_KEY] == 30, "no accuracy is no mistake"
    chosen = Candidate(prompt, "incumbent")
    private.round(RoundResult(2, chosen, (chosen,), {}, 0, 100, None))
    lines = (private._folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    start, search, settled = map(json.loads, lines)
    assert (start["event"], search["candidates"]) == ("start", 3)
    assert settled["epsilon"] == 1.5
    table = private.close()
    assert "epsilon = 1.5 for one private example, delta = 0" in table
    assert "0.75 in each round" in table
    saved = private.state_dict()

    private.fit_metrics([(4, SEARCH)])
    assert "epsilon = 2.25 for" in private.close(), "a round that was answered and not settled"

    for resumed in (1, 2):  # each time, the round in which the run stopped may be answered twice
        again = recorder(settings, tmp_path, *parts)
        again.load_state_dict(saved)
        again.redo(1)
        saved = again.state_dict()
        again.round(RoundResult(3, chosen, (chosen,), {}, 0, 100, None))
        history = (again._folder.path / "history.jsonl").read_text(encoding="utf-8")
        assert json.loads(history.splitlines()[-1])["epsilon"] == 0.75 * (3 + resumed)
        assert f"{resumed} of {2 + resumed} done again" in again.close()

    plain = recorder({}, tmp_path, *parts)
    plain.evaluate(0, [np.array(prompt)], {})
    plain.fit_metrics([(4, SEARCH)])
    assert "differential privacy" not in plain.close()
    (only,) = (plain._folder.path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(only)["event"] == "start", "without privacy an accuracy is expected"
