"""FedDTPT for ``flwr.server``: ``fit`` and ``evaluate``."""

from collections.abc import Callable, Mapping, Sequence
from logging import INFO, WARNING
from typing import Any, TypeVar

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
    parameters_to_ndarrays,
)
from flwr.server.client_manager import ClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from numpy.typing import NDArray

from strategies.aggregation import Method
from strategies.by_model import ChooseFor
from strategies.candidates import Tokens
from strategies.elbow import ElbowMethod
from strategies.metrics import of_own_function, round_metrics
from strategies.rounds import RoundResult, Rounds
from strategies.selection import FluencyFn, Noise
from strategies.settings import EmbedFn, RoundSettings, require_share
from strategies.wire import ROUND_KEY, ClientWeights, Reply, payload_bytes, short_line

LONGEST_WAIT = 86_400
"""Seconds that a round waits for clients: as long as Flower does."""

DRAWS = 3
"""How often clients are drawn: Flower looks who is there twice, and draws none if one has left in
between."""

EvaluateFn = Callable[[int, NDArrays, dict[str, Scalar]], tuple[float, dict[str, Scalar]] | None]

_Failure = tuple[ClientProxy, FitRes] | tuple[ClientProxy, EvaluateRes] | BaseException
_Instructions = TypeVar("_Instructions", bound=Sequence[object])

SHOWN = (
    "aggregation",
    "min_samples",
    "elbow_method",
    "noise",
    "n_clusters",
    "client_weights",
    "guard",
    "choose_for",
    "race_candidates",
    "race_examples",
    "max_tokens",
)
"""Settings that stand in the strategy's representation."""


class FedDTPT(FedAvg):
    """Federated discrete and transferable prompt tuning.

    Implementation based on https://arxiv.org/abs/2411.00985, section 3.4 and Algorithm 2, with a
    guard that the paper lacks: before the aggregated prompt becomes the global one, the clients
    count the correct answers of it, of the best local prompts, of the edits that several clients
    share, of merged edits and of the prompt so far on their private examples, and the best one
    stays. The paper to the letter is ``guard=False, aggregation="literal"``; what it leaves open is
    in `strategies.aggregation`.

    `strategies.message.FedDTPT` is the same for Flower's message API. They have one name in two
    modules, as Flower's own strategies have in ``flwr.server`` and ``flwr.serverapp``.

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
        ``"feddtpt"``; ``"literal"``, the paper's words without what is added where it is silent; or
        an ablation or baseline of `strategies.aggregate`. ``"best"`` goes by what clients report as
        ``accuracy``; those that report none come last. Defaults to ``"feddtpt"``.
    min_samples : int, optional
        DBSCAN's smallest neighbourhood of a core point. Defaults to None: it grows with the number
        of clients (`strategies.min_samples_for`).
    elbow_method : str, optional
        How DBSCAN's radius is read off the sorted neighbour distances (`strategies.elbow`).
        ``"lines"`` is the strongest change of slope, which ``aggregation="literal"`` always takes.
        Defaults to ``"split"``.
    noise : str, optional
        What becomes of tokens that are in no cluster: ``"drop"``, or ``"keep"``, each as a cluster
        of its own. The paper does not say. Defaults to ``"drop"``.
    n_clusters : int, optional
        Clusters of ``aggregation="kmeans"``. Defaults to None: as many as a prompt has tokens on
        average.
    fluency_fn : FluencyFn, optional
        Gives of each of some prompts how well it reads, larger is better; of the tokens that
        are about as similar to the other clients' the paper's step then takes the one that reads
        best. Defaults to None: the
        heaviest, however little heavier it is, as in the paper.
    client_weights : str, optional
        What a client's tokens count by in the aggregation: ``"equal"``, ``"examples"`` (its number
        of examples, at most the median client's) or ``"accuracy"`` (what it reports under that
        name; the app's clients, that on their search's examples). Both are the client's own
        word. Defaults to ``"equal"``, as in the paper.
    guard : bool, optional
        Whether clients compare candidates before the global prompt changes. Off is the paper's
        behaviour. Defaults to True.
    choose_for : str, optional
        What the guard's comparison decides by: ``"mean"``, all clients' answers, or ``"worst"``,
        the answers of the black box that a candidate serves worst. Clients name theirs as
        ``model``, which is their own word: one that makes up a name decides ``"worst"`` alone.
        Defaults to ``"mean"``.
    race_candidates : int, optional
        Most candidates besides the incumbent. Defaults to 4.
    race_examples : int, optional
        On how many examples each candidate is tried, all clients together: each is told its share,
        as ``race-examples``. 0 for all that there are. Defaults to 256.
    admissible : Callable[[Tokens], bool], optional
        Prompts for which it is false are no candidates; for example, unreadable ones. Without a
        guard it is not asked.
    on_round : Callable[[RoundResult], None], optional
        Called when a round's global prompt is settled.
    fraction_fit : float, optional
        Fraction of clients used during training. Defaults to 1.0.
    fraction_evaluate : float, optional
        Fraction of clients that score the candidates. Defaults to 1.0.
    min_fit_clients, min_evaluate_clients : int, optional
        As in `FedAvg`; and with fewer usable uploads, or counts, the prompt stays. Default to 2.
    min_available_clients : int, optional
        As in `FedAvg`, but for the search alone: it is not waited for a client that leaves before
        the candidates are scored, since the others have paid for their searches. Defaults to 2.
    evaluate_fn : EvaluateFn, optional
        Central evaluation of the global prompt, called for round 0 and for every settled prompt.
    on_fit_config_fn, on_evaluate_config_fn : Callable[[int], dict[str, Scalar]], optional
        Further configuration for the clients; they are given the round's number over all runs that
        a saved state connects.
    accept_failures : bool, optional
        Whether a round with failures counts; malformed answers are failures too. Defaults to True.
    fit_metrics_aggregation_fn, evaluate_metrics_aggregation_fn : MetricsAggregationFn, optional
        As in `FedAvg`, of the usable answers. To what the second returns, without a guard the
        first, `strategies.metrics.round_metrics` are added. If one raises an error, that is logged
        and costs the metrics, not the round.
    metrics_of_failed : bool, optional
        Whether these are also given the answers that report a ``failure``, or what is ``used-up``,
        for instance to add up what was spent: such have no ``accuracy``, and may have no examples.
        Defaults to False.

    Raises
    ------
    ValueError
        If a value is not allowed, or if there is a guard but ``fraction_evaluate`` is 0.
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
        min_samples: int | None = None,
        elbow_method: ElbowMethod = "split",
        noise: Noise = "drop",
        n_clusters: int | None = None,
        fluency_fn: FluencyFn | None = None,
        client_weights: ClientWeights = "equal",
        guard: bool = True,
        choose_for: ChooseFor = "mean",
        race_candidates: int = 4,
        race_examples: int = 256,
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
        metrics_of_failed: bool = False,
    ) -> None:
        require_share("fraction_fit", fraction_fit)
        require_share("fraction_evaluate", fraction_evaluate)
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
            fit_metrics_aggregation_fn=fit_metrics_aggregation_fn,
            evaluate_metrics_aggregation_fn=evaluate_metrics_aggregation_fn,
        )
        settings = RoundSettings(
            embed_fn=embed_fn,
            vocabulary_size=vocabulary_size,
            vocabulary=vocabulary,
            max_tokens=max_tokens,
            aggregation=aggregation,
            min_samples=min_samples,
            elbow_method=elbow_method,
            noise=noise,
            n_clusters=n_clusters,
            fluency_fn=fluency_fn,
            client_weights=client_weights,
            guard=guard,
            choose_for=choose_for,
            race_candidates=race_candidates,
            race_examples=race_examples,
            admissible=admissible,
            min_uploads=min_fit_clients,
            min_scores=min_evaluate_clients,
            accept_failures=accept_failures,
        )
        prompt = settings.read_initial([initial_prompt])
        self._rounds = Rounds(settings, prompt, central=self._evaluate_centrally, on_round=on_round)
        self._central: tuple[float, dict[str, Scalar]] | None = None
        self._metrics_of_failed = metrics_of_failed

    @property
    def prompt(self) -> Tokens:
        """The global prompt's token ids."""
        return self._rounds.prompt

    def __repr__(self) -> str:
        """Return the settings that make this strategy what it is."""
        shown = ", ".join(f"{name}={getattr(self._rounds.settings, name)!r}" for name in SHOWN)
        return (
            f"FedDTPT({shown}, fraction_fit={self.fraction_fit}, "
            f"fraction_evaluate={self.fraction_evaluate})"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on after the last settled round, as JSON values."""
        return self._rounds.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; call it before the run starts.

        Rounds are then counted on: the run's first is the one after the last that was settled.

        Raises
        ------
        ValueError
            If it is of another version or vocabulary, or malformed.
        """
        self._rounds.load_state_dict(state)

    def initialize_parameters(self, client_manager: ClientManager) -> Parameters:
        """Return the prompt that a run starts from."""
        self._rounds.begin_run(self.prompt)
        return _to_parameters([self.prompt])

    def configure_fit(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, FitIns]]:
        """Send the global prompt to the clients that search in this round."""
        self._rounds.expect(parameters_to_ndarrays(parameters))
        number = self._rounds.begin_round(server_round)
        # Flower's server still holds the candidates of the round before, not the settled prompt.
        chosen = _to_parameters([self.prompt])
        if (connected := client_manager.num_available()) < self.min_available_clients:
            # Flower waits without a word, for up to a day.
            needed = self.min_available_clients
            log(INFO, "round %d waits: %d of %d clients connected", number, connected, needed)
            # Flower draws as many as were connected before it waited, not as many as are then.
            client_manager.wait_for(needed, LONGEST_WAIT)
        configure = super().configure_fit
        instructions = _drawn(lambda: configure(number, chosen, client_manager))
        if not instructions:
            # Flower goes on to the comparison, of what is here then.
            self._rounds.skip_round()
        num_scoring, _ = self.num_evaluation_clients(client_manager.num_available())
        told = {**self._rounds.search_config(num_scoring), ROUND_KEY: number}
        for _, instruction in instructions:
            instruction.config = {**instruction.config, **told}
            self._rounds.count_bytes(payload_bytes(chosen.tensors, instruction.config))
        return instructions

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Aggregate the local prompts; with a guard, return the candidates to compare."""
        replies = [
            Reply(proxy.cid, tuple(res.parameters.tensors), res.metrics, res.num_examples)
            for proxy, res in results
        ]
        self._tell(server_round, failures)
        usable, failed = self._rounds.read_uploads(server_round, replies, len(failures))
        told = [results[i][1] for i in usable + (failed if self._metrics_of_failed else [])]
        metrics = self._aggregated(self.fit_metrics_aggregation_fn, told)
        prompts = self._rounds.propose()
        return _returned(prompts), {**metrics, **self._take_round_metrics()}

    def num_evaluation_clients(self, num_available_clients: int) -> tuple[int, int]:
        """Return how many clients score candidates, and how many of them to wait for."""
        sample_size, _ = super().num_evaluation_clients(num_available_clients)
        return sample_size, self.min_evaluate_clients

    def configure_evaluate(
        self, server_round: int, parameters: Parameters, client_manager: ClientManager
    ) -> list[tuple[ClientProxy, EvaluateIns]]:
        """Send the candidates to the clients that score them."""
        self._rounds.expect(parameters_to_ndarrays(parameters))
        if self._rounds.nothing_to_compare:
            return []
        number = self._rounds.number(server_round)
        compared = _to_parameters([c.tokens for c in self._rounds.candidates])
        configure = super().configure_evaluate
        instructions = _drawn(lambda: configure(number, compared, client_manager))
        if not instructions:
            # Flower does not come back in this round.
            self._rounds.read_scores([], 0)
            self._rounds.decide()
        told = self._rounds.scoring_config(len(instructions))
        for _, instruction in instructions:
            instruction.config = {**instruction.config, **told, ROUND_KEY: number}
            self._rounds.count_bytes(payload_bytes(compared.tensors, instruction.config))
        return instructions

    def aggregate_evaluate(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, EvaluateRes]],
        failures: list[tuple[ClientProxy, EvaluateRes] | BaseException],
    ) -> tuple[float | None, dict[str, Scalar]]:
        """Count the clients' answers and settle the global prompt."""
        replies = [Reply(proxy.cid, (), res.metrics, res.num_examples) for proxy, res in results]
        self._tell(server_round, failures)
        usable, failed = self._rounds.read_scores(replies, len(failures))
        told = [results[i][1] for i in usable + (failed if self._metrics_of_failed else [])]
        metrics = self._aggregated(self.evaluate_metrics_aggregation_fn, told)
        score = self._rounds.decide()
        metrics = {**metrics, **self._take_round_metrics()}
        if self._central:
            loss, values = self._central
            metrics |= {f"central-{k}": value for k, value in {"loss": loss, **values}.items()}
        if score is None:
            return None, metrics
        metrics["accuracy"] = score.accuracy
        return 1.0 - score.accuracy, metrics

    def evaluate(
        self, server_round: int, parameters: Parameters
    ) -> tuple[float, dict[str, Scalar]] | None:
        """Return the central evaluation of the global prompt, if this round's is settled.

        With a guard it is not yet: Flower asks between the two phases of a round. The result is
        then part of `RoundResult` and of what `aggregate_evaluate` returns.
        """
        if server_round == 0:
            self._evaluate_centrally(self._rounds.number(0), self.prompt)
        return None if len(self._rounds.candidates) > 1 else self._central

    @staticmethod
    def _aggregated(
        function: MetricsAggregationFn | None, told: Sequence[FitRes | EvaluateRes]
    ) -> dict[str, Scalar]:
        """Return what a function of the user's makes of the clients' metrics."""
        if function is None or not told:
            return {}
        return of_own_function(function, [(res.num_examples, res.metrics) for res in told]) or {}

    def _tell(self, server_round: int, failures: Sequence[_Failure]) -> None:
        """Log why clients gave no answer: Flower only counts them."""
        for failure in failures:
            # A client may also answer that it cannot: without `evaluate`, for instance.
            reason = failure if isinstance(failure, BaseException) else failure[1].status.message
            number = self._rounds.number(server_round)
            log(WARNING, "round %d: no answer of a client: %s", number, short_line(reason))

    def _take_round_metrics(self) -> dict[str, int | float]:
        """Return the numbers of the round, if it is settled, once."""
        result = self._rounds.take_result()
        return round_metrics(result) if result else {}

    def _evaluate_centrally(self, server_round: int, tokens: Tokens) -> dict[str, Scalar] | None:
        self._central = None
        if self.evaluate_fn is not None:
            arrays = [np.array(tokens, dtype=np.int64)]
            self._central = self.evaluate_fn(server_round, arrays, {})
        return self._central[1] if self._central else None


def _drawn(configure: Callable[[], _Instructions]) -> _Instructions:
    """Return the instructions of drawn clients; none if there is none to draw (see `DRAWS`)."""
    for _ in range(DRAWS - 1):
        if instructions := configure():
            return instructions
    return configure()


def _returned(prompts: Sequence[Tokens]) -> Parameters:
    """Return prompts as floats: rounded to whole numbers a wrapper's noise could go unnoticed."""
    return ndarrays_to_parameters([np.array(tokens, dtype=np.float64) for tokens in prompts])


def _to_parameters(prompts: Sequence[Tokens]) -> Parameters:
    return ndarrays_to_parameters([np.array(tokens, dtype=np.int64) for tokens in prompts])
