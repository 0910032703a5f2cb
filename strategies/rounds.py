"""The rounds of FedDTPT without Flower: uploads in, candidates out, counts in, next prompt out.

Flower's two kinds of strategy, :mod:`strategies.feddtpt` and :mod:`strategies.message`, only
translate between Flower's calls and these steps.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strategies.by_model import Count, by_model, compared_by, model_name
from strategies.candidates import Candidate, LocalPrompt, Score, Tokens, choose, tally
from strategies.settings import RoundSettings
from strategies.step import next_candidates
from strategies.wire import (
    COMPARED_KEY,
    RACE_EXAMPLES_KEY,
    VOCABULARY_KEY,
    Reply,
    UploadError,
    check_numbers,
    examples_each,
    failure,
    read_scores,
    read_upload,
    used_up,
)

CentralFn = Callable[[int, Tokens], Mapping[str, Any] | None]
"""Round and settled prompt to the metrics of its central evaluation."""

STATE_VERSION = 1

_logger = logging.getLogger("flwr")  # Flower's own, so that the lines stand among Flower's


@dataclass(frozen=True)
class RoundResult:
    """How a round's global prompt was found.

    Attributes
    ----------
    server_round
        The round, from 1, counted over all runs that a saved state connects.
    chosen
        The new global prompt.
    candidates
        All prompts that were compared, the incumbent first; just the chosen one without a guard.
    scores
        Correct answers of each candidate over all clients; empty where nothing was compared.
    failures
        Clients whose answer was missing or malformed until the round was settled: in both phases,
        if there was something to compare.
    num_bytes
        Content of all messages until then, in both directions, without framing.
    central
        Metrics of the central evaluation, or ``None`` without one.
    scores_by_model
        The same scores for the clients of each black box alone, by its name.
    """

    server_round: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    scores: dict[Tokens, Score]
    failures: int
    num_bytes: int
    central: Mapping[str, Any] | None
    scores_by_model: Mapping[str, Mapping[Tokens, Score]] = field(default_factory=dict)


class Rounds:
    """The prompt so far, and the round at work.

    The steps of a round, in order: `begin_round`, `read_uploads`, `propose`, then, for the clients'
    scores, `read_scores` and `decide`. A round in which only one prompt is left is settled by
    `propose` already.

    Parameters
    ----------
    settings : RoundSettings
        What does not change.
    prompt : Tokens
        The first global prompt; empty if it is to come later.
    central : CentralFn
        Evaluates a settled prompt.
    on_round : Callable[[RoundResult], None], optional
        Called when a round is settled.

    Attributes
    ----------
    settings : RoundSettings
        What does not change.
    prompt : Tokens
        The global prompt.
    round : int
        The last settled round; 0 before the first.
    candidates : tuple[Candidate, ...]
        What the clients compare; the global prompt alone when the round is settled.
    central : Mapping[str, Any] or None
        Metrics of the last settled prompt's central evaluation.
    """

    def __init__(
        self,
        settings: RoundSettings,
        prompt: Tokens,
        *,
        central: CentralFn,
        on_round: Callable[[RoundResult], None] | None = None,
    ) -> None:
        self.settings = settings
        self.round = 0
        self._central_fn = central
        self._on_round = on_round
        self._go_on_from(prompt)

    def _go_on_from(self, prompt: Tokens) -> None:
        self.prompt = prompt
        self.candidates: tuple[Candidate, ...] = (Candidate(prompt, "incumbent"),)
        self.central: Mapping[str, Any] | None = None
        self._handed_out: tuple[Tokens, ...] = (prompt,)
        self._offset = self.round
        self._number = self.round
        self._failures = 0
        self._lost_scores = 0
        self._num_bytes = 0
        self._uploads: list[LocalPrompt] = []
        self._counts: list[Count] = []
        self._result: RoundResult | None = None

    def begin_run(self, prompt: Tokens) -> None:
        """Start a run of Flower's from ``prompt``; its round 1 is the one after the last settled.

        The server's step is made once with the prompt alone: what is wrong with ``embed_fn`` or
        another function of the settings shows before clients have paid for a search.

        Raises
        ------
        ValueError
            If earlier rounds led to another prompt.
        """
        if self.round and prompt != self.prompt:
            raise ValueError(
                f"round {self.round} ended with the prompt {list(self.prompt)}, but the run is to "
                f"start from {list(prompt)}: go on from the strategy's own, or make a new strategy"
            )
        next_candidates(prompt, [LocalPrompt("", prompt, 0.0)], self.settings)
        self._go_on_from(prompt)

    def number(self, server_round: int) -> int:
        """Return the number over all runs of a round that Flower counts from 1 in each."""
        return self._offset + server_round

    def begin_round(self, server_round: int) -> int:
        """Open a round; return its number over all runs."""
        if len(self.candidates) > 1:
            self._warn("nobody compared the prompts; the prompt stays")
            self._settle(self.candidates[0], {})
        self._number = self.number(server_round)
        self._failures = 0
        self._num_bytes = 0
        self._result = None
        return self._number

    def skip_round(self) -> None:
        """Settle an open round in which nobody searches: the prompt stays."""
        self._warn("nobody searches; the prompt stays")
        self._settle(Candidate(self.prompt, "incumbent"), {})

    def take_result(self) -> RoundResult | None:
        """Return how the open round was settled, once; None if it is not, or was taken."""
        result, self._result = self._result, None
        return result

    @property
    def nothing_to_compare(self) -> bool:
        """Whether clients would be asked to compare one prompt with nothing."""
        return self.settings.guard and len(self.candidates) == 1

    def scoring_config(self, num_clients: int) -> dict[str, str | int]:
        """Return what is told besides where ``num_clients`` score the candidates."""
        config = self._config()
        if share := examples_each(self.settings.race_examples, num_clients):
            config[RACE_EXAMPLES_KEY] = share
        return config

    def search_config(self, num_scoring: int) -> dict[str, str | int]:
        """Return what is told besides before a search; ``num_scoring`` clients compare afterwards.

        Where the run's queries are limited, a search leaves those for the comparison after it.
        """
        if not self.settings.guard:
            return self._config()
        return {**self.scoring_config(num_scoring), COMPARED_KEY: True}

    def _config(self) -> dict[str, str | int]:
        """Return what clients are told in every message besides Flower's own."""
        # Flower's message_size_mod fails on empty texts.
        vocabulary = self.settings.vocabulary
        return {VOCABULARY_KEY: vocabulary} if vocabulary else {}

    def count_bytes(self, num_bytes: int) -> None:
        """Add the content of messages that are sent."""
        self._num_bytes += num_bytes

    def expect(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Check that Flower hands back the prompts that this strategy gave it.

        Raises
        ------
        ValueError
            If they were changed on the way.
        """
        if tuple(tuple(array.tolist()) for array in arrays) != self._handed_out:
            raise ValueError(
                "the prompts were changed after the strategy returned them: wrappers that clip "
                "arrays or add noise to them, as for differential privacy, do not work on token "
                "ids, and who overrides a method returns what it returned"
            )

    def read_uploads(
        self, server_round: int, replies: Sequence[Reply], lost: int
    ) -> tuple[list[int], list[int]]:
        """Read what the searching clients sent.

        Parameters
        ----------
        server_round : int
            The round as Flower counts it.
        replies : Sequence[Reply]
            All answers.
        lost : int
            Clients that were asked and did not answer.

        Returns
        -------
        usable, failed : list[int]
            Indices of the replies that hold a usable prompt, and of those without one that tell
            why. All but the usable ones, and those of clients that may ask nothing more, are
            failures.
        """
        self._number = self.number(server_round)
        valid, failed, num_used_up = [], [], 0
        self._uploads = []
        for index, reply in enumerate(replies):
            self._num_bytes += reply.num_bytes
            if not self._sound(reply, "upload"):
                continue
            if limit := used_up(reply.metrics):
                # The prompt that it was sent says nothing about its examples.
                self._warn("client %s searches no more: %s is used up", reply.client, limit)
                failed.append(index)
                num_used_up += 1
                continue
            if reason := failure(reply.metrics):
                self._warn("the search of client %s ended early: %s", reply.client, reason)
                if not reply.tensors:
                    failed.append(index)
                    continue
            try:
                upload = read_upload(
                    reply,
                    vocabulary=self.settings.vocabulary,
                    vocabulary_size=self.settings.vocabulary_size,
                    max_tokens=self.settings.max_tokens,
                    client_weights=self.settings.client_weights,
                )
            except UploadError as error:
                self._warn("the upload of client %s is rejected: %s", reply.client, error)
                continue
            valid.append(index)
            self._uploads.append(upload)
        self._failures = lost + len(replies) - len(valid) - num_used_up
        return valid, failed

    def propose(self) -> tuple[Tokens, ...]:
        """Aggregate the uploads; return the prompts to compare, or the one that is settled."""
        incumbent = Candidate(self.prompt, "incumbent")
        self.candidates = (incumbent,)
        if self._enough(len(self._uploads), self.settings.min_uploads, self._failures, "uploads"):
            self.candidates = next_candidates(self.prompt, self._uploads, self.settings)
        self._handed_out = tuple(candidate.tokens for candidate in self.candidates)
        if len(self.candidates) == 1:
            self._settle(self.candidates[0], {})
        return self._handed_out

    def read_scores(self, replies: Sequence[Reply], lost: int) -> tuple[list[int], list[int]]:
        """Read the clients' counts; as `read_uploads`."""
        tokens = [candidate.tokens for candidate in self.candidates]
        valid, failed = [], []
        self._counts = []
        for index, reply in enumerate(replies):
            self._num_bytes += reply.num_bytes
            if not self._sound(reply, "count"):
                continue
            if reason := failure(reply.metrics):
                self._warn("no counts of client %s: %s", reply.client, reason)
                failed.append(index)
                continue
            try:
                counts = read_scores(reply.metrics, tokens)
            except UploadError as error:
                self._warn("the count of client %s is rejected: %s", reply.client, error)
                continue
            valid.append(index)
            self._counts.append(Count(model_name(reply.metrics), counts))
        self._lost_scores = lost + len(replies) - len(valid)
        self._failures += self._lost_scores
        return valid, failed

    def decide(self) -> Score | None:
        """Settle the global prompt, if it is not yet; return its score, or None without counts."""
        scores = tally([count.scores for count in self._counts])
        chosen = self.candidates[0]
        if len(self.candidates) > 1:
            if self._enough(
                len(self._counts), self.settings.min_scores, self._lost_scores, "counts"
            ):
                compared = compared_by(self._counts, self.settings.choose_for)
                chosen = choose(self.candidates, compared, scores)[0]
            self._settle(chosen, scores or {c.tokens: Score() for c in self.candidates})
        return scores.get(chosen.tokens)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next run needs to go on after the last settled round, as JSON values."""
        return {
            "version": STATE_VERSION,
            "round": self.round,
            "prompt": list(self.prompt),
            "vocabulary": self.settings.vocabulary,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises
        ------
        ValueError
            If it is of another version or vocabulary, or malformed; nothing has changed then.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"state of version {state.get('version')!r}; this one reads {STATE_VERSION}"
            )
        if state.get("vocabulary") != self.settings.vocabulary:
            raise ValueError(
                f"state of vocabulary {state.get('vocabulary')!r}, not {self.settings.vocabulary!r}"
            )
        number = state.get("round")
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"a state's round is a number from 0, got {number!r}")
        if not state.get("prompt"):
            raise ValueError("malformed state: no prompt; was it saved before a run began?")
        prompt = self.settings.read_initial([np.array(state["prompt"])])
        self.round = number
        self._go_on_from(prompt)

    def _sound(self, reply: Reply, what: str) -> bool:
        """Return whether what a client reports can be averaged with the others' reports."""
        try:
            check_numbers(reply)
        except UploadError as error:
            self._warn("the %s of client %s is rejected: %s", what, reply.client, error)
            return False
        return True

    def _enough(self, usable: int, needed: int, failures: int, what: str) -> bool:
        if usable < max(needed, 1):
            reason = f"{usable} usable {what}, {max(needed, 1)} needed"
        elif failures and not self.settings.accept_failures:
            reason = f"{failures} failures, none accepted"
        else:
            return True
        self._warn("%s; the prompt stays", reason)
        return False

    def _warn(self, text: str, *values: object) -> None:
        _logger.warning("round %d: " + text, self._number, *values)

    def _settle(self, chosen: Candidate, scores: dict[Tokens, Score]) -> None:
        _logger.info("round %d: the %s is the global prompt", self._number, chosen.origin)
        self.prompt = chosen.tokens
        self.round = self._number
        candidates, self.candidates = self.candidates, (chosen,)
        self.central = self._central_fn(self._number, self.prompt)
        self._result = RoundResult(
            self._number,
            chosen,
            candidates,
            scores,
            self._failures,
            self._num_bytes,
            self.central,
            by_model(self._counts) if scores else {},
        )
        if self._on_round:
            self._on_round(self._result)
