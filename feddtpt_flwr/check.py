"""Whether a node is ready for a run: what its operator finds out before joining.

Nothing here shows a key or the text of an example: the findings may be sent around.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeVar

from feddtpt_flwr import models
from feddtpt_flwr.assets import AssetError
from feddtpt_flwr.client_limits import Sizes, most_scored, num_compared, too_few_queries
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import DataError, Task
from feddtpt_flwr.data.own import OwnFile, count_by_class
from feddtpt_flwr.experiment import load_task, seed_tokens
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.language_model.answers import parse_answer
from feddtpt_flwr.language_model.usage import Metered, Usage
from feddtpt_flwr.masked_lm import MaskedLM
from feddtpt_flwr.node import Node, NodeConfig, load_node
from feddtpt_flwr.privacy.exponential import ledger_on_disk, require_opendp, total_epsilon
from feddtpt_flwr.privacy.ledger import LedgerError, LedgerFile
from feddtpt_flwr.search import FIRST_BATCH

QUESTIONS = 16
"""Asked together, to measure how many answers come in a second."""

_LINE = "This is a line that nobody has written."

_MISTAKES = (ConfigError, DataError, AssetError, LedgerError, ModelError)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    subject : str
        What it is.
    result : str
        What was found; empty if nothing could be.
    fix : str
        What the operator has to do; empty if all is well.
    """

    subject: str
    result: str
    fix: str = ""


@dataclass(frozen=True)
class Speed:
    """How fast the models are, in seconds, and what an answer costs.

    Attributes
    ----------
    per_answer : float
        For one of `QUESTIONS` answers that are asked for together.
    per_proposal : float
        For one proposed change: a filling and a judgement of the language.
    tokens : Usage
        What `num_answers` answers used; all zero where nobody counts.
    num_answers : int
        At least 1.
    """

    per_answer: float
    per_proposal: float
    tokens: Usage
    num_answers: int


def check_node(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any], num_clients: int
) -> Iterator[Finding]:
    """Look at everything that a node needs in a run, one after the other.

    Asks the black box `QUESTIONS` + 2 questions, and an endpoint a few more of one line.

    Parameters
    ----------
    run_config, node_config : Mapping[str, Any]
        As Flower hands them to a client. In a simulated run the first part is looked at if the
        node config names none.
    num_clients : int
        Clients of the simulated run, among whom its data is then divided.

    Yields
    ------
    Finding
        As soon as it is known.
    """
    try:
        config = _read(run_config, node_config, num_clients)
        task = load_task(config.run)
        if config.run.privacy == "exponential":
            require_opendp()
    except _MISTAKES as error:
        yield Finding("settings", "", str(error))
        return
    yield Finding("settings", f"task {task.name!r}, clients = {config.run.clients!r}")
    if isinstance(own := config.examples, OwnFile):
        yield _attempt("own file", lambda: _describe_file(own, task))[1]
    node, of_examples = _attempt("examples", lambda: _load(config))
    yield of_examples
    if file := node and node.ledger:
        left, of_epsilon = _attempt("epsilon", lambda: _describe_ledger(file, config.run))
        yield of_epsilon
        if left is not None and round(left, 9) < 0:  # tenths do not add up exactly
            yield Finding("epsilon", "", _too_little_epsilon(file.limit, config.run))
    if node and (mistake := too_few_queries(config.run, Sizes.of(node.data, node.public))):
        yield Finding("queries", "", mistake)
    seconds, of_masked_lm = _attempt("masked LM", lambda: _measure_masked_lm(config.run, task))
    yield of_masked_lm
    if config.run.proposer == "prompt-generator":
        yield _attempt("prompt generator", lambda: _measure_generator(config.run))[1]
    yield from _black_box(config.run, task, node, seconds or 0.0)


def _read(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any], num_clients: int
) -> NodeConfig:
    run = RunConfig.from_run_config({**run_config})
    if run.clients == "simulated" and "partition-id" not in node_config:
        # A run waits for so many.
        parts = {"partition-id": 0, "num-partitions": max(num_clients, run.min_available_clients)}
        return NodeConfig.read(run_config, {**parts, **node_config})
    return NodeConfig.read(run_config, node_config)


def _attempt(subject: str, look: Callable[[], tuple[_T, str]]) -> tuple[_T | None, Finding]:
    """Return what ``look`` found, if it found anything, and the finding."""
    try:
        found, result = look()
    except _MISTAKES as error:
        return None, Finding(subject, "", str(error))
    return found, Finding(subject, result)


def _describe_file(file: OwnFile, task: Task) -> tuple[int, str]:
    examples, repeats = file.read_and_count(task)
    counts = count_by_class(examples, task)
    each = ", ".join(f"{count:,} {answer!r}" for answer, count in counts.items())
    left_out = f"; {repeats}" if repeats.rows else ""
    return len(examples), f"{file.path}: {len(examples):,} different texts: {each}{left_out}"


def _load(config: NodeConfig) -> tuple[Node, str]:
    node = load_node(config, 0)
    return node, (
        f"{len(node.data.train)} to search on, {len(node.data.validation)} to validate on, "
        f"{len(node.public)} in the public set"
    )


def _describe_ledger(file: LedgerFile, config: RunConfig) -> tuple[float, str]:
    """Return what a run leaves of a node's limit of epsilon, and a description."""
    ledger = ledger_on_disk(file, config)
    ledger.check()
    spent, run = ledger.spent(), total_epsilon(config, config.num_server_rounds) or 0.0
    of = f" of {file.limit:g}" if file.limit else ""
    left = file.limit - spent - run if file.limit else inf
    return left, f"{file.path}: {spent:g}{of} spent; this run takes up to {run:g}"


def _too_little_epsilon(limit: float, config: RunConfig) -> str:
    run = total_epsilon(config, config.num_server_rounds) or 0.0
    return (
        f"epsilon-limit = {limit:g}: less than the {run:g} of this run's num-server-rounds * "
        "epsilon is left, so this node will answer in its first rounds only"
    )


def _measure_masked_lm(config: RunConfig, task: Task) -> tuple[float, str]:
    """Return the seconds of a proposal, and a description."""
    model: MaskedLM = models.masked_lm(config, task)
    tokens = seed_tokens(config, task, model.vocabulary)
    filling, _ = _timed(lambda: model.fill([(tokens[:-1], ())]))
    judging, _ = _timed(lambda: model.log_likelihood([tokens]))
    where = config.masked_lm_endpoint or "in this process"
    return filling + judging, (
        f"{config.masked_lm} ({where}), vocabulary {model.vocabulary.fingerprint} of "
        f"{len(model.vocabulary):,} tokens; {filling:.2f} s to fill a gap, {judging:.2f} s to "
        f"judge a prompt"
    )


def _measure_generator(config: RunConfig) -> tuple[float, str]:
    """Return the seconds of a line from the model that writes prompts, and a description."""
    model = models.ready_writing_model(config)
    seconds, _ = _timed(lambda: model.answer([_LINE], ()))
    return seconds, f"{model.name}: {seconds:.2f} s for a free answer"


def _black_box(
    config: RunConfig, task: Task, node: Node | None, per_proposal: float
) -> Iterator[Finding]:
    subject = "black box"
    examples = [*node.data.train, *node.data.validation, *node.public] if node else []
    inputs = [e.input for e in examples] or [task.render(dict.fromkeys(task.text_columns, _LINE))]
    prompt = config.seed_prompt or task.seed_prompt
    queries = [task.compose(prompt, text) for text in inputs]
    try:
        model = models.ready_language_model(config)
        latency, (answer,) = _timed(lambda: model.answer(queries[:1], task.answers))
        free_latency, (free,) = _timed(lambda: model.answer(queries[:1], ()))
        # Others than the first: servers remember what they have just read.
        batch = [queries[i % len(queries)] for i in range(1, QUESTIONS + 1)]
        before = model.usage if isinstance(model, Metered) else Usage()
        seconds, _ = _timed(lambda: model.answer(batch, task.answers))
        used = model.usage - before if isinstance(model, Metered) else Usage()
    except _MISTAKES as error:
        yield Finding(subject, "", str(error))
        return
    # The free answer is not shown: it may repeat the example.
    fits = "names an answer word" if _understood(free, task) else "names no answer word"
    yield Finding(
        subject,
        f"{model.name}: {latency:.2f} s for a constrained answer, {free_latency:.2f} s for a free "
        f"one, which {fits}",
        ""
        if _understood(answer, task)
        else "the constrained answer is no answer word: set constrain to what the server can do, "
        "or raise max-answer-tokens",
    )
    yield Finding(
        "throughput",
        f"{QUESTIONS / seconds:.1f} answers a second, with {QUESTIONS} asked together "
        f"({QUESTIONS + 2} questions were asked for this check)",
    )
    speed = Speed(seconds / QUESTIONS, per_proposal, used, QUESTIONS)
    yield Finding("a whole run", describe_run(config, task, speed))


def _understood(answer: str, task: Task) -> bool:
    return parse_answer(answer, task.answers, task.synonyms) is not None


def most_queries(config: RunConfig, task: Task) -> int:
    """Return the most questions that a run asks one node's black box."""
    own = most_scored(config, 2 * config.k_shot * task.num_labels)
    every_round = config.queries_per_round + num_compared(config) * own
    return min(config.num_server_rounds * every_round, config.queries_per_run or sys.maxsize)


def describe_run(config: RunConfig, task: Task, speed: Speed) -> str:
    """Return what a run asks of one node at most: questions, time, tokens and money."""
    queries = most_queries(config, task)
    proposals = config.num_server_rounds * config.queries_per_round / FIRST_BATCH
    minutes = (queries * speed.per_answer + proposals * speed.per_proposal) / 60
    parts = [
        f"at most {queries:,} questions in {config.num_server_rounds} rounds",
        f"about {minutes:.0f} min of answers and proposals",
    ]
    used, share = speed.tokens, queries / speed.num_answers
    if used.prompt_tokens:
        read, written = used.prompt_tokens * share, used.completion_tokens * share
        parts.append(f"about {read:,.0f} tokens read and {written:,.0f} written")
        prices = models.prices(config)
        if prices.input or prices.output:
            parts.append(f"about {prices.cost(used) * share:.2f} at the prices set")
        else:
            parts.append("no prices are set")
    return "; ".join(parts)


def _timed(do: Callable[[], _T]) -> tuple[float, _T]:
    start = time.perf_counter()
    result = do()
    return time.perf_counter() - start, result


def fixes(findings: Sequence[Finding]) -> list[str]:
    """Return what must be done, each thing once with all that it concerns, as it was found."""
    concerned: dict[str, list[str]] = {}
    for finding in findings:
        if finding.fix:
            concerned.setdefault(finding.fix, []).append(finding.subject)
    return [f"{', '.join(subjects)}: {fix}" for fix, subjects in concerned.items()]
