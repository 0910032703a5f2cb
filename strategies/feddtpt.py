"""FedDTPT as a Flower strategy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.common import (
    EvaluateIns,
    EvaluateRes,
    FitIns,
    FitRes,
    MetricsAggregationFn,
    NDArrays,
    Parameters,
    Scalar,
    log,
    ndarrays_to_parameters,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from numpy.typing import NDArray

from strategies.aggregation import Method, aggregate
from strategies.candidates import (
    Candidate,
    LocalPrompt,
    Score,
    Tokens,
    choose,
    propose_candidates,
)
from strategies.wire import (
    CLIENT_KEY,
    ROUND_KEY,
    VOCABULARY_KEY,
    UploadError,
    failure,
    payload_bytes,
    read_scores,
    read_upload,
)

EmbedFn = Callable[[Sequence[NDArray[np.int64]]], Sequence[NDArray[np.floating[Any]]]]
"""Prompts, each of shape ``(N_k,)``, to contextual token embeddings, each of shape ``(N_k, d)``."""

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]


_NOTHING = Parameters(tensors=[], tensor_type="")


@dataclass(frozen=True)
class RoundResult:
    """How a round's global prompt was found.

    Attributes
    ----------
    server_round
        The round, from 1.
    chosen
        The new global prompt.
    candidates
        All prompts that were compared, the incumbent first; just the chosen one without a guard.
    scores
        Correct answers of each candidate over all clients; empty without a guard.
    failures
        Clients whose answer was missing or malformed, in both phases.
    num_bytes
        Content of all messages of the round, in both directions, without framing.
    central
        Loss and metrics of the central evaluation, or ``None`` without one.
    """

    server_round: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    scores: dict[Tokens, Score]
    failures: int
    num_bytes: int
    central: tuple[float, dict[str, Scalar]] | None


class FedDTPT(FedAvg):
    """Federated discrete and transferable prompt tuning.

    Implementation based on https://arxiv.org/abs/2411.00985, section 3.4 and Algorithm 2, with a
    guard that the paper lacks: before the aggregated prompt becomes the global one, the clients
    count the correct answers of it, of the best local prompts, of their merged edits and of the
    prompt so far on their private examples, and the best one stays.

    Parameters
    ----------
    initial_prompt : NDArray[np.int64]
        The seed prompt's token ids, shape ``(N,)``.
    embed_fn : EmbedFn
        Gives the contextual embedding of every token of every prompt.
    vocabulary_size : int
        Number of token ids; uploads with others are rejected.
    vocabulary : str, optional
        A fingerprint of the vocabulary; clients that report another are rejected.
    max_tokens : int, optional
        Longest prompt. Defaults to 24.
    aggregation : str, optional
        ``"feddtpt"``, or an ablation or baseline of `strategies.aggregate`. Defaults to
        ``"feddtpt"``.
    min_samples : int, optional
        DBSCAN's smallest neighbourhood of a core point. Defaults to 2.
    guard : bool, optional
        Whether clients compare candidates before the global prompt changes. Off is the paper's
        behaviour. Defaults to True.
    race_candidates : int, optional
        Most candidates besides the incumbent. Defaults to 4.
    admissible : Callable[[Tokens], bool], optional
        Prompts for which it is false are no candidates; for example, unreadable ones.
    on_round : Callable[[RoundResult], None], optional
        Called when a round's global prompt is settled.
    fraction_fit : float, optional
        Fraction of clients used during training. Defaults to 1.0.
    fraction_evaluate : float, optional
        Fraction of clients that score the candidates. Defaults to 1.0.
    min_fit_clients, min_evaluate_clients, min_available_clients : int, optional
        As in `FedAvg`. Default to 2.
    evaluate_fn : EvaluateFn, optional
        Central evaluation of the global prompt, called for round 0 and for every settled prompt.
    on_fit_config_fn, on_evaluate_config_fn : Callable[[int], dict[str, Scalar]], optional
        Further configuration for the clients.
    accept_failures : bool, optional
        Whether a round with failures counts. Defaults to True.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn : MetricsAggregationFn, optional
        As in `FedAvg`.

    Raises
    ------
    ValueError
        If there is a guard, but ``fraction_evaluate`` is 0.
    """

    def __init__(
        self,
        *,
        initial_prompt: NDArray[np.int64],
        embed_fn: EmbedFn,
        vocabulary_size: int,
        vocabulary: str = "",
        max_tokens: int = 24,
        aggregation: Method = "feddtpt",
        min_samples: int = 2,
        guard: bool = True,
        race_candidates: int = 4,
        admissible: Callable[[Tokens], bool] = lambda _: True,
        on_round: Callable[[RoundResult], None] | None = None,
        fraction_fit: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_fit_clients: int = 2,
        min_evaluate_clients: int = 2,
        min_available_clients: int = 2,
        evaluate_fn: EvaluateFn | None = None,
        on_fit_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        on_evaluate_config_fn: Callable[[int], dict[str, Scalar]] | None = None,
        accept_failures: bool = True,
        fit_metrics_aggregation_fn: MetricsAggregationFn | None = None,
        evaluate_metrics_aggregation_fn: MetricsAggregationFn | None = None,
    ) -> None:
        if guard and fraction_evaluate == 0:
            raise ValueError("the guard needs clients that evaluate: fraction_evaluate above 0")
        super().__init__(
            fraction_fit=fraction_fit,
            fraction_evaluate=fraction_evaluate,
            min_fit_clients=min_fit_clients,
            min_evaluate_clients=min_evaluate_clients,
            min_available_clients=min_available_clients,
            evaluate_fn=evaluate_fn,
            on_fit_config_fn=on_fit_config_fn,
            on_evaluate_config_fn=on_evaluate_config_fn,
            accept_failures=accept_failures,
            initial_parameters=ndarrays_to_parameters([initial_prompt]),
            fit_metrics_aggregation_fn=fit_metrics_aggregation_fn,
            evaluate_metrics_aggregation_fn=evaluate_metrics_aggregation_fn,
        )
        self.prompt: Tokens = tuple(int(token) for token in initial_prompt)
        self.embed_fn = embed_fn
        self.vocabulary_size = vocabulary_size
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self.aggregation: Method = aggregation
        self.min_samples = min_samples
        self.guard = guard
        self.race_candidates = race_candidates
        self.admissible = admissible
        self.on_round = on_round
        self._candidates: tuple[Candidate, ...] = ()
        self._failures = 0
        self._num_bytes = 0
        self._central: tuple[float, dict[str, Scalar]] | None = None

    def __repr__(self) -> str:
        """Return the settings that make this strategy what it is."""
        return (
            f"FedDTPT(aggregation={self.aggregation!r}, min_samples={self.min_samples}, "
            f"guard={self.guard}, race_candidates={self.race_candidates}, "
            f"max_tokens={self.max_tokens})"
        )

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Send the global prompt to the clients that search in this round."""
        # Between the phases of a round Flower's server holds the candidates, not the prompt.
        chosen = _to_parameters([self.prompt])
        instructions = super().configure_fit(server_round, chosen, client_manager)
        self._num_bytes = 0
        for _, instruction in instructions:
            instruction.config = self._config(server_round, instruction.config)
            self._num_bytes += payload_bytes(instruction.parameters, instruction.config)
        return instructions

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the local prompts; with a guard, return the candidates to compare."""
        valid, uploads = self._read_uploads(results)
        self._num_bytes += sum(payload_bytes(res.parameters, res.metrics) for _, res in results)
        self._failures = len(failures) + len(results) - len(valid)
        incumbent = Candidate(self.prompt, "incumbent")
        self._candidates = (incumbent,)
        metrics: dict[str, Scalar] = {}
        # A client that failed has something to tell as well: what it spent, and what went wrong.
        reports = valid + [
            pair for pair in results if failure(pair[1].metrics) and pair not in valid
        ]
        if self.fit_metrics_aggregation_fn and reports:
            metrics = self.fit_metrics_aggregation_fn(
                [(res.num_examples, res.metrics) for _, res in reports]
            )
        refused = bool(self._failures) and not self.accept_failures
        if not uploads or refused:
            log(WARNING, "round %d: no usable uploads, the prompt stays", server_round)
        elif self.guard:
            self._candidates = propose_candidates(
                self.prompt,
                uploads,
                self._aggregate(uploads),
                limit=self.race_candidates,
                max_tokens=self.max_tokens,
                admissible=self.admissible,
            )
        else:
            self._candidates = (Candidate(self._aggregate(uploads), "aggregate"),)
        if len(self._candidates) == 1:
            self._settle(server_round, self._candidates[0], {})
        return _to_parameters([c.tokens for c in self._candidates]), metrics

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Send the candidates to the clients that score them."""
        instructions = super().configure_evaluate(server_round, parameters, client_manager)
        for _, instruction in instructions:
            instruction.config = self._config(server_round, instruction.config)
            self._num_bytes += payload_bytes(instruction.parameters, instruction.config)
        return instructions

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Count the clients' answers and settle the global prompt."""
        tokens = [c.tokens for c in self._candidates]
        self._num_bytes += sum(payload_bytes(_NOTHING, res.metrics) for _, res in results)
        scores = {t: Score() for t in tokens}
        valid: list[tuple[int, dict[str, Scalar]]] = []
        failed_reports: list[tuple[int, dict[str, Scalar]]] = []
        for proxy, result in results:
            if reason := failure(result.metrics):
                client = result.metrics.get(CLIENT_KEY, proxy.cid)
                log(WARNING, "round %d: no scores of client %s: %s", server_round, client, reason)
                failed_reports.append((result.num_examples, result.metrics))
                continue
            try:
                counts = read_scores(result.metrics, tokens)
            except UploadError as error:
                log(WARNING, "round %d: scores of %s rejected: %s", server_round, proxy.cid, error)
                continue
            valid.append((result.num_examples, result.metrics))
            for key, count in counts.items():
                total = scores[key]
                scores[key] = Score(total.correct + count.correct, total.total + count.total)
        failed = len(failures) + len(results) - len(valid)
        self._failures += failed
        metrics: dict[str, Scalar] = {}
        if self.evaluate_metrics_aggregation_fn and (valid or failed_reports):
            metrics = self.evaluate_metrics_aggregation_fn(valid + failed_reports)
        chosen, score = choose(self._candidates, scores)
        if len(self._candidates) > 1:
            if failed and not self.accept_failures:
                chosen, score = self._candidates[0], scores[self._candidates[0].tokens]
            self._settle(server_round, chosen, scores)
        if not valid:
            return None, metrics
        metrics["accuracy"] = score.accuracy
        if self._central:
            metrics |= {f"central-{key}": value for key, value in self._central[1].items()}
        return 1.0 - score.accuracy, metrics

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Return the central evaluation of the global prompt, if this round's is settled.

        With a guard it is not yet: Flower asks between the two phases of a round. The result is
        then part of `RoundResult` and of what `aggregate_evaluate` returns.
        """
        if server_round == 0:
            return self._evaluate_centrally(server_round)
        return None if len(self._candidates) > 1 else self._central

    def _config(self, server_round: int, config: dict[str, Scalar]) -> dict[str, Scalar]:
        return {**config, ROUND_KEY: server_round, VOCABULARY_KEY: self.vocabulary}

    def _read_uploads(
        self, results: list[tuple[ClientProxy, FitRes]]
    ) -> tuple[list[tuple[ClientProxy, FitRes]], list[LocalPrompt]]:
        valid, uploads = [], []
        for proxy, result in results:
            client = str(result.metrics.get(CLIENT_KEY, proxy.cid))
            if reason := failure(result.metrics):
                log(WARNING, "the search of client %s ended early: %s", client, reason)
                if not result.parameters.tensors:
                    continue
            try:
                upload = read_upload(
                    result.parameters,
                    result.metrics,
                    client=client,
                    vocabulary=self.vocabulary,
                    vocabulary_size=self.vocabulary_size,
                    max_tokens=self.max_tokens,
                )
            except UploadError as error:
                log(WARNING, "upload of client %s rejected: %s", client, error)
                continue
            valid.append((proxy, result))
            uploads.append(upload)
        return valid, uploads

    def _aggregate(self, uploads: Sequence[LocalPrompt]) -> Tokens:
        prompts = [np.array(upload.tokens, dtype=np.int64) for upload in uploads]
        result = aggregate(
            prompts,
            self.embed_fn(prompts),
            method=self.aggregation,
            min_samples=self.min_samples,
            max_tokens=self.max_tokens,
            accuracies=[upload.gain for upload in uploads],
        )
        return tuple(int(token) for token in result.tokens)

    def _evaluate_centrally(self, server_round: int) -> tuple[float, dict[str, Scalar]] | None:
        if self.evaluate_fn is None:
            return None
        return self.evaluate_fn(server_round, [np.array(self.prompt, dtype=np.int64)], {})

    def _settle(self, server_round: int, chosen: Candidate, scores: dict[Tokens, Score]) -> None:
        log(INFO, "round %d: the %s is the global prompt", server_round, chosen.origin)
        self.prompt = chosen.tokens
        candidates, self._candidates = self._candidates, (chosen,)
        self._central = self._evaluate_centrally(server_round)
        if self.on_round:
            self.on_round(
                RoundResult(
                    server_round,
                    chosen,
                    candidates,
                    scores,
                    self._failures,
                    self._num_bytes,
                    self._central,
                )
            )


def _to_parameters(prompts: Sequence[Tokens]) -> Parameters:
    return ndarrays_to_parameters([np.array(tokens, dtype=np.int64) for tokens in prompts])
