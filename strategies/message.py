"""FedDTPT for Flower's message API, ``flwr.serverapp``: ``train`` and ``evaluate``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import INFO
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.serverapp.strategy.strategy_utils import sample_nodes

from strategies.aggregation import Method
from strategies.by_model import ChooseFor
from strategies.candidates import Tokens
from strategies.elbow import ElbowMethod
from strategies.metrics import MetricsAggrFn, aggregated, means_and_totals, round_metrics
from strategies.rounds import RoundResult, Rounds
from strategies.sampling import draw_evaluating, num_evaluating
from strategies.selection import FluencyFn, Noise
from strategies.settings import EmbedFn, RoundSettings, require_share
from strategies.wire import ACCURACY_KEY, ClientWeights, Reply, payload_bytes

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class FedDTPT(FedAvg):
    """Federated discrete and transferable prompt tuning.

    Implementation based on https://arxiv.org/abs/2411.00985, section 3.4 and Algorithm 2, with a
    guard that the paper lacks: before the aggregated prompt becomes the global one, the clients
    count the correct answers of it, of the best local prompts, of the edits that several clients
    share, of merged edits and of the prompt so far on their private examples, and the best one
    stays. The paper to the letter is ``guard=False, aggregation="literal"``; what it leaves open is
    in `strategies.aggregation`.

    `strategies.feddtpt.FedDTPT` is the same for ``flwr.server``. They have one name in two modules,
    as Flower's own strategies have in ``flwr.server`` and ``flwr.serverapp``. The first prompt is
    not set here: it is the one array of token ids in the ``initial_arrays`` of `start`.

    Parameters
    ----------
    embed_fn : EmbedFn
        Gives the contextual embedding of every token of every prompt.
    vocabulary_size : int
        Number of token ids; uploads with others are rejected.
    vocabulary : str (default: "")
        A fingerprint of the vocabulary; clients that report another are rejected.
    max_tokens : int (default: 24)
        Longest prompt.
    aggregation : str (default: "feddtpt")
        ``"feddtpt"``; ``"literal"``, the paper's words without what is added where it is silent; or
        an ablation or baseline of `strategies.aggregate`. ``"best"`` goes by what nodes report as
        ``accuracy``; those that report none come last.
    min_samples : Optional[int] (default: None)
        DBSCAN's smallest neighbourhood of a core point. If `None`, it grows with the number of
        clients (`strategies.min_samples_for`).
    elbow_method : str (default: "split")
        How DBSCAN's radius is read off the sorted neighbour distances (`strategies.elbow`).
        ``"lines"`` is the strongest change of slope, which ``aggregation="literal"`` always takes.
    noise : str (default: "drop")
        What becomes of tokens that are in no cluster: ``"drop"``, or ``"keep"``, each as a cluster
        of its own. The paper does not say.
    n_clusters : Optional[int] (default: None)
        Clusters of ``aggregation="kmeans"``. If `None`, as many as a prompt has tokens on average.
    fluency_fn : Optional[FluencyFn] (default: None)
        Gives of each of some prompts how well it reads, larger is better; of the tokens that
        are about as similar to the other clients' the paper's step then takes the one that reads
        best. If `None`, the heaviest,
        however little heavier it is, as in the paper.
    client_weights : str (default: "equal")
        What a client's tokens count by in the aggregation: ``"equal"``, as in the paper;
        ``"examples"``, its value of `weighted_by_key`, at most the median client's; or
        ``"accuracy"``, what it reports under that name (the app's clients, that on their
        search's examples). The last two are the client's own word.
    guard : bool (default: True)
        Whether clients compare candidates before the global prompt changes. Off is the paper's
        behaviour.
    choose_for : str (default: "mean")
        What the guard's comparison decides by: ``"mean"``, all nodes' answers, or ``"worst"``, the
        answers of the black box that a candidate serves worst. Nodes name theirs as ``model``,
        which is their own word: one that makes up a name decides ``"worst"`` alone.
    race_candidates : int (default: 4)
        Most candidates besides the incumbent.
    race_examples : int (default: 256)
        On how many examples each candidate is tried, all nodes together: each is told its share, as
        ``race-examples``. 0 for all that there are.
    admissible : Optional[Callable[[Tokens], bool]] (default: None)
        Prompts for which it is false are no candidates; for example, unreadable ones. Without a
        guard it is not asked.
    on_round : Optional[Callable[[RoundResult], None]] (default: None)
        Called when a round's global prompt is settled.
    fraction_train : float (default: 1.0)
        Fraction of nodes that search in a round.
    fraction_evaluate : float (default: 1.0)
        Fraction of nodes that score the candidates.
    min_train_nodes : int (default: 2)
        As in `FedAvg`; and with fewer usable uploads the prompt stays.
    min_evaluate_nodes : int (default: 2)
        As in `FedAvg`; and with fewer usable counts the prompt stays.
    min_available_nodes : int (default: 2)
        Minimum number of total nodes in the system for a search to begin. It is not waited for a
        node that leaves before the candidates are scored: the others have paid for their searches.
    weighted_by_key : str (default: "num-examples")
        The key within each MetricRecord whose value is used as the weight when computing weighted
        averages for MetricRecords. Token ids are not averaged: see `client_weights`.
    arrayrecord_key : str (default: "arrays")
        Key used to store the ArrayRecord when constructing Messages.
    configrecord_key : str (default: "config")
        Key used to store the ConfigRecord when constructing Messages.
    train_metrics_aggr_fn : Optional[callable] (default: None)
        Function with signature (list[RecordDict], str) -> MetricRecord, used to aggregate the
        MetricRecords of usable uploads, which it is given as they are. If it raises an error, that
        is logged and costs the metrics, not the round. If `None`, a weighted average of what all
        have, with queries, tokens and costs added up.
    evaluate_metrics_aggr_fn : Optional[callable] (default: None)
        The same for the counts. To its result, without a guard to that of the uploads,
        `strategies.metrics.round_metrics` are added.

    Raises
    ------
    ValueError
        If a value is not allowed, or if there is a guard but ``fraction_evaluate`` is 0.

    Notes
    -----
    As Flower's other message strategies this one has no ``accept_failures``: what is missing or
    malformed is left out, and the minima decide.
    """

    def __init__(
        self,
        embed_fn: EmbedFn,
        vocabulary_size: int,
        *,
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
        admissible: Callable[[Tokens], bool] | None = None,
        on_round: Callable[[RoundResult], None] | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsAggrFn | None = None,
        evaluate_metrics_aggr_fn: MetricsAggrFn | None = None,
    ) -> None:
        require_share("fraction_train", fraction_train)
        require_share("fraction_evaluate", fraction_evaluate)
        if guard and fraction_evaluate == 0:
            raise ValueError("the guard needs nodes that evaluate: fraction_evaluate above 0")
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn or means_and_totals,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn or means_and_totals,
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
            admissible=admissible or (lambda _: True),
            min_uploads=min_train_nodes,
            min_scores=min_evaluate_nodes,
        )
        self._rounds = Rounds(settings, (), central=self._evaluate_centrally, on_round=on_round)
        self._evaluate_fn: EvaluateFn | None = None
        self._asked = 0

    @property
    def prompt(self) -> Tokens:
        """The global prompt's token ids; empty before `start`."""
        return self._rounds.prompt

    @property
    def arrays(self) -> ArrayRecord:
        """The global prompt as Flower's record, as `start` takes it; before, an empty prompt."""
        return _to_record([self.prompt])

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        settings = self._rounds.settings
        min_samples = (
            "grows with the nodes" if settings.min_samples is None else settings.min_samples
        )
        log(INFO, "\t├──> FedDTPT settings:")
        log(INFO, "\t│\t├── Aggregation: %s", settings.aggregation)
        log(INFO, "\t│\t├── Minimum samples of a core point: %s", min_samples)
        log(INFO, "\t│\t├── Elbow of the neighbour distances: %s", settings.elbow_method)
        log(INFO, "\t│\t├── Tokens in no cluster: %s", settings.noise)
        log(INFO, "\t│\t├── Clusters of k-means: %s", settings.n_clusters or "as many as tokens")
        log(INFO, "\t│\t├── Minds how prompts read: %s", settings.fluency_fn is not None)
        log(INFO, "\t│\t├── Client weights: %s", settings.client_weights)
        log(INFO, "\t│\t├── Guard: %s", settings.guard)
        log(INFO, "\t│\t├── Candidates besides the incumbent: %d", settings.race_candidates)
        log(INFO, "\t│\t├── Examples each is tried on: %s", settings.race_examples or "all")
        log(INFO, "\t│\t├── Chosen for: %s", settings.choose_for)
        log(INFO, "\t│\t├── Longest prompt: %d tokens", settings.max_tokens)
        log(INFO, "\t│\t└── Vocabulary: %d tokens", settings.vocabulary_size)
        super().summary()

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on after the last settled round, as JSON values."""
        return self._rounds.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; then `start` with `arrays`.

        Rounds are then counted on: the run's first is the one after the last that was settled.

        Raises
        ------
        ValueError
            If it is of another version or vocabulary, or malformed.
        """
        self._rounds.load_state_dict(state)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Execute the federated learning strategy: see Flower's `Strategy.start`.

        Two things differ. ``evaluate_fn`` is called as soon as a round's prompt is settled, with
        that prompt alone, so that its result is part of `RoundResult`; and it is told the round's
        number over all runs that a saved state connects.

        Parameters
        ----------
        grid, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As there.
        initial_arrays : ArrayRecord
            One array: the seed prompt's token ids, or `arrays` to go on after earlier rounds.

        Returns
        -------
        Result
            Its ``arrays`` hold the last settled prompt.

        Raises
        ------
        ValueError
            If ``initial_arrays`` are no prompt, or not the one that earlier rounds ended with.
        """
        self._rounds.begin_run(self._rounds.settings.read_initial(_to_arrays(initial_arrays)))
        self._evaluate_fn = evaluate_fn

        def settled(server_round: int, _: ArrayRecord) -> MetricRecord | None:
            if server_round == 0:
                return self._evaluate_centrally(self._rounds.number(0), self.prompt)
            # It has been evaluated, and paid for, when it was settled.
            central = self._rounds.central
            return central if isinstance(central, MetricRecord) else None

        result = super().start(
            grid,
            initial_arrays,
            num_rounds,
            timeout,
            train_config,
            evaluate_config,
            settled if evaluate_fn else None,
        )
        # Flower holds what aggregate_train returned, the last round's candidates.
        result.arrays = self.arrays
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the global prompt to the nodes that search in this round."""
        if not self.prompt:
            self._rounds.begin_run(self._rounds.settings.read_initial(_to_arrays(arrays)))
        self._rounds.expect(_to_arrays(arrays))
        number = self._rounds.begin_round(server_round)
        if self.fraction_train:
            # Flower draws as many as were connected before it waited, not as many as are then.
            sample_nodes(grid, self.min_available_nodes, 0)
        num_scoring = num_evaluating(
            len(list(grid.get_node_ids())), self.fraction_evaluate, self.min_evaluate_nodes
        )
        config.update(self._rounds.search_config(num_scoring))
        return self._sent(super().configure_train(number, self.arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the local prompts; with a guard, return the candidates to compare."""
        answered, _ = self._check_and_log_replies(replies, is_train=True, validate=False)
        read = [self._read(message) for message in answered]
        valid, failed = self._rounds.read_uploads(server_round, read, self._lost(answered))
        metrics = aggregated(
            [answered[i].content for i in valid],
            self.weighted_by_key,
            self.train_metrics_aggr_fn,
            [answered[i].content for i in failed],
        )
        prompts = self._rounds.propose()
        return _returned(prompts), self._with_round_metrics(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the candidates to the nodes that score them."""
        self._rounds.expect(_to_arrays(arrays))
        self._asked = 0
        if self.fraction_evaluate == 0 or self._rounds.nothing_to_compare:
            return []
        nodes = draw_evaluating(grid, self.fraction_evaluate, self.min_evaluate_nodes)
        config.update(self._rounds.scoring_config(len(nodes)))
        config["server-round"] = self._rounds.number(server_round)
        compared = _to_record([candidate.tokens for candidate in self._rounds.candidates])
        record = RecordDict({self.arrayrecord_key: compared, self.configrecord_key: config})
        return self._sent(self._construct_messages(record, nodes, MessageType.EVALUATE))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Count the nodes' answers and settle the global prompt."""
        answered, _ = self._check_and_log_replies(replies, is_train=False, validate=False)
        read = [self._read(message) for message in answered]
        valid, failed = self._rounds.read_scores(read, self._lost(answered))
        metrics = aggregated(
            [answered[i].content for i in valid],
            self.weighted_by_key,
            self.evaluate_metrics_aggr_fn,
            [answered[i].content for i in failed],
        )
        score = self._rounds.decide()
        metrics = self._with_round_metrics(metrics)
        if score is None:
            return metrics
        metrics = MetricRecord() if metrics is None else metrics
        metrics[ACCURACY_KEY] = score.accuracy
        return metrics

    def _with_round_metrics(self, metrics: MetricRecord | None) -> MetricRecord | None:
        """Add the numbers of the round, if it is settled, once."""
        result = self._rounds.take_result()
        return MetricRecord({**(metrics or {}), **round_metrics(result)}) if result else metrics

    def _evaluate_centrally(self, server_round: int, tokens: Tokens) -> MetricRecord | None:
        if self._evaluate_fn is None:
            return None
        central = self._evaluate_fn(server_round, _to_record([tokens]))
        return central if central is None else MetricRecord({**central})  # or of a plain dict

    def _sent(self, messages: Iterable[Message]) -> list[Message]:
        messages = list(messages)
        # Who does not answer in time is only missing from the replies.
        self._asked = len(messages)
        for message in messages:
            tensors, values = _content(message.content)
            self._rounds.count_bytes(payload_bytes(tensors, values))
        return messages

    def _lost(self, answered: Sequence[Message]) -> int:
        asked, self._asked = self._asked, 0
        return max(asked - len(answered), 0)

    def _read(self, message: Message) -> Reply:
        tensors, values = _content(message.content)
        examples = values.get(self.weighted_by_key)
        return Reply(str(message.metadata.src_node_id), tensors, values, examples)


def _content(content: RecordDict) -> tuple[tuple[bytes, ...], dict[str, Any]]:
    """Return all arrays of a message, as they travel, and all its values."""
    tensors = [array.data for record in content.array_records.values() for array in record.values()]
    values: dict[str, Any] = {}
    for config in content.config_records.values():
        values |= config
    for metric in content.metric_records.values():
        values |= metric
    return tuple(tensors), values


def _to_arrays(record: ArrayRecord) -> list[Any]:
    return record.to_numpy_ndarrays()


def _returned(prompts: Sequence[Tokens]) -> ArrayRecord:
    """Return prompts as floats: rounded to whole numbers a wrapper's noise could go unnoticed."""
    return ArrayRecord([np.array(tokens, dtype=np.float64) for tokens in prompts])


def _to_record(prompts: Sequence[Tokens]) -> ArrayRecord:
    return ArrayRecord([np.array(tokens, dtype=np.int64) for tokens in prompts])
