"""The server: seed prompt, strategy, central evaluation, run folder, checkpoints."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path

import numpy as np
from flwr.common import Context, Scalar, log
from flwr.server import ServerConfig
from flwr.server.compat import start_grid
from flwr.serverapp import Grid, ServerApp

from feddtpt_flwr import __version__, logs, models, trackers
from feddtpt_flwr.budget import QueryBudget
from feddtpt_flwr.checkpoint import Checkpoint, examples_fingerprint, fingerprint
from feddtpt_flwr.client_limits import Sizes, too_few_in_run, too_few_queries
from feddtpt_flwr.client_state import RUN_KEY, VERSION_KEY
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import Example, Task
from feddtpt_flwr.evaluation import AnswerCache, Evaluator
from feddtpt_flwr.experiment import load_data, load_task, readability, seed_tokens
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.patience import make_patient, wait_for_clients
from feddtpt_flwr.privacy.exponential import require_opendp
from feddtpt_flwr.recorder import Recorder
from feddtpt_flwr.round_server import RoundServer
from feddtpt_flwr.run_folder import RunFolder
from strategies.candidates import Tokens
from strategies.feddtpt import FedDTPT
from strategies.selection import Fluencies, FluencyFn

REST = 60.0  # seconds that a service which failed to judge prompts is not asked again

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; a mistake in the configuration ends it before any query."""
    logs.begin(run=str(context.run_id), node="server")
    grid = make_patient(grid)
    config = RunConfig.from_run_config(context.run_config)
    saved = Checkpoint.read(Path(config.resume)) if config.resume else None
    _look_ahead(config, saved)
    run = build(config, wait_for_clients(grid, config.min_available_clients), saved)

    def drive(server: RoundServer, num_rounds: int) -> None:
        timeout = config.round_timeout or None
        rounds = ServerConfig(num_rounds=num_rounds, round_timeout=timeout)
        start_grid(grid=grid, server=server, config=rounds)

    logs.show(conduct(run, drive))


@dataclass(frozen=True)
class Run:
    """A run that is ready to start, or to go on.

    Attributes
    ----------
    config : RunConfig
        Its settings.
    task : Task
        Its task.
    held_out : tuple[Example, ...]
        Its held-out examples.
    num_clients : int
        Clients that were connected when it was built.
    strategy : FedDTPT
        At the last completed round.
    recorder : Recorder
        At the same.
    folder : RunFolder
        Where everything goes.
    name : str
        By which the clients know the run.
    """

    config: RunConfig
    task: Task
    held_out: tuple[Example, ...]
    num_clients: int
    strategy: FedDTPT
    recorder: Recorder
    folder: RunFolder
    name: str

    @property
    def rounds(self) -> int:
        """The last completed round."""
        return int(self.strategy.state_dict()["round"])

    def save(self) -> None:
        """Write a checkpoint."""
        self.folder.attempt(lambda: self.folder.write_checkpoint(self._checkpoint().to_json()))

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            settings=self.config.to_run_config(),
            task=fingerprint(self.task),
            held_out=examples_fingerprint(self.held_out),
            strategy=self.strategy.state_dict(),
            recorder=self.recorder.state_dict(),
            history_lines=self.folder.num_events,
            num_clients=self.num_clients,
            run=self.name,
        )


def conduct(run: Run, drive: Callable[[RoundServer, int], None]) -> str:
    """Let a run go through the rounds it lacks, with a checkpoint after each.

    Parameters
    ----------
    run : Run
        As `build` made it.
    drive : Callable[[RoundServer, int], None]
        Lets a server do so many rounds with the clients.

    Returns
    -------
    str
        The closing table.
    """
    begun = run.rounds

    def completed(server_round: int) -> None:
        # A prompt that nobody was left to score is settled in the next round, as the strategy does.
        if run.rounds == begun + server_round:
            run.save()

    if left := run.config.num_server_rounds - begun:
        server = RoundServer(run.strategy, completed, seed=run.config.seed, begun=begun)
        drive(server, left)
        if server.over and run.rounds < run.config.num_server_rounds:
            run.recorder.ended_early()
    return run.recorder.close()


def build(config: RunConfig, num_clients: int, saved: Checkpoint | None = None) -> Run:
    """Check everything that a run needs, then put strategy and recorder together.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    num_clients : int
        Clients that are connected.
    saved : Checkpoint, optional
        Where to go on.

    Raises
    ------
    ConfigError, DataError, AssetError, ModelError
        If a setting, the data, an embedded asset or the language model's endpoint is not what it
        has to be; the message says which, and what is allowed.
    """
    trackers.require(config.trackers)
    if config.privacy == "exponential" and config.clients == "simulated":
        require_opendp()  # or every client would fail, each by itself
    if config.proposer == "prompt-generator" and config.clients == "simulated":
        # Nodes with data of their own have their own keys: each finds out for itself.
        models.ready_writing_model(config)
    task = load_task(config)
    data = load_data(config, 0 if config.clients == "own-data" else num_clients)
    for own in data.clients:
        sizes = Sizes.of(own, data.public)
        if mistake := too_few_queries(config, sizes) or too_few_in_run(config, sizes, num_clients):
            raise ConfigError(mistake)
    if saved:
        saved.check(config, task, data.test, num_clients)
    masked_lm = models.masked_lm(config, task)
    vocabulary = masked_lm.vocabulary
    first = seed_tokens(config, task, vocabulary)
    masked_lm.log_likelihood([first])  # a service that does not answer shows it here
    model = models.ready_language_model(config)
    # Held-out questions are the experimenter's, not the federation's: counted, but not limited.
    store = models.answer_store(config)
    budget = QueryBudget(sys.maxsize)
    folder = (
        RunFolder.existing(Path(config.resume))
        if saved
        else RunFolder(Path(config.run_folder), f"{task.name}-seed{config.seed}")
    )
    folder.claim()
    if saved and Checkpoint.read(folder.path).rounds != saved.rounds:
        raise ConfigError(f"resume = {config.resume!r}: that run has gone on meanwhile; try again")
    folder.follow(trackers.open_all(config, folder.path))
    recorder = Recorder(
        config,
        task,
        vocabulary,
        Evaluator(model, task, budget, AnswerCache(archives=() if store is None else (store,))),
        data.test,
        folder,
        model.name,
    )
    # By this name the clients know the run again when it goes on.
    name = (saved and saved.run) or folder.path.name
    told: dict[str, Scalar] = {RUN_KEY: name}
    if config.clients == "own-data":
        # Simulated clients may import the app from another place, but never on another machine.
        told[VERSION_KEY] = __version__

    def begin_round(server_round: int) -> dict[str, Scalar]:
        logs.add(round=server_round)
        return dict(told)

    strategy = FedDTPT(
        initial_prompt=np.array(first, dtype=np.int64),
        embed_fn=recorder.watch(models.token_embedder(config, task).embed),
        vocabulary_size=len(vocabulary),
        vocabulary=vocabulary.fingerprint,
        max_tokens=config.max_prompt_tokens,
        aggregation=config.aggregation,
        min_samples=config.min_samples or None,
        # Without the guard the server's step is the paper's.
        fluency_fn=_or_all_alike(masked_lm.log_likelihood) if config.guard else None,
        guard=config.guard,
        choose_for=config.choose_for,
        race_candidates=config.race_candidates,
        race_examples=config.race_examples,
        admissible=_safely(readability(config, task)),
        on_round=recorder.round,
        fraction_fit=config.fraction_fit,
        # With nothing to choose from, answers of the clients would be paid for nothing.
        fraction_evaluate=config.fraction_evaluate if config.guard else 0.0,
        min_fit_clients=1,
        min_evaluate_clients=1,
        min_available_clients=config.min_available_clients,
        evaluate_fn=recorder.evaluate,
        on_fit_config_fn=begin_round,
        on_evaluate_config_fn=lambda _: dict(told),
        fit_metrics_aggregation_fn=recorder.fit_metrics,
        evaluate_metrics_aggregation_fn=recorder.evaluate_metrics,
        metrics_of_failed=True,  # the recorder counts what they spent
    )
    run = Run(config, task, data.test, num_clients, strategy, recorder, folder, name)
    if saved:
        _restore(run, saved)
    return run


def _restore(run: Run, saved: Checkpoint) -> None:
    try:
        run.strategy.load_state_dict(saved.strategy)
    except ValueError as error:
        raise ConfigError(f"masked-lm = {run.config.masked_lm!r}: {error}") from None
    run.recorder.load_state_dict(saved.recorder)
    again = run.folder.settled_after(saved.history_lines)
    dropped = run.folder.forget_after(saved.history_lines)
    run.folder.append("resume", round=saved.rounds, dropped=dropped)
    log(INFO, "the run %s goes on after round %d", run.folder.path, saved.rounds)
    if saved.rounds < saved.settings["num-server-rounds"]:  # it was stopped, maybe in a round
        run.recorder.redo(again + 1)
        run.save()  # or it would be forgotten if the run stopped before the end of this round


def _safely(admissible: Callable[[Tokens], bool]) -> Callable[[Tokens], bool]:
    """Leave out a prompt that cannot be judged now: an outage must not end the run."""

    def judged(tokens: Tokens) -> bool:
        try:
            return admissible(tokens)
        except ModelError as error:
            log(WARNING, "a candidate is left out: %s", error)
            return False

    return judged


def _or_all_alike(fluency_fn: FluencyFn) -> FluencyFn:
    """Call all prompts as good as each other where they cannot be judged now.

    After a failure nothing is asked for a while: a step asks about one place after the other.
    """
    rests_until = 0.0

    def judged(prompts: Sequence[Tokens]) -> Fluencies:
        nonlocal rests_until
        if time.monotonic() >= rests_until:
            try:
                return fluency_fn(prompts)
            except ModelError as error:
                log(WARNING, "the aggregated prompt is not made to read better: %s", error)
                rests_until = time.monotonic() + REST
        return np.zeros(len(prompts))

    return judged


def _look_ahead(config: RunConfig, saved: Checkpoint | None) -> None:
    """Find the likeliest mistakes before the last client has come, which may take hours."""
    trackers.require(config.trackers)
    task = load_task(config)
    if saved:
        saved.check_settings(config, task)
    if config.clients == "own-data":
        load_data(config, 0)
    seed_tokens(config, task, models.masked_lm(config, task).vocabulary)
    models.ready_language_model(config)
