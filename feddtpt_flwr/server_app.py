"""The server: seed prompt, strategy, central evaluation, run folder."""

import time
from collections.abc import Callable
from logging import INFO, WARNING
from pathlib import Path

import numpy as np
from flwr.common import Context, log
from flwr.server import ServerConfig
from flwr.server.compat import start_grid
from flwr.serverapp import Grid, ServerApp

from feddtpt_flwr import models
from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.evaluation import AnswerCache, Evaluator, QueryBudget
from feddtpt_flwr.experiment import load_data, load_task, readability, seed_tokens
from feddtpt_flwr.language_model import ModelError
from feddtpt_flwr.privacy.exponential import require_opendp
from feddtpt_flwr.recorder import Recorder
from feddtpt_flwr.run_folder import RunFolder
from strategies.candidates import Tokens
from strategies.feddtpt import FedDTPT

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; a mistake in the configuration ends it before any query."""
    config = RunConfig.from_run_config(context.run_config)
    strategy, recorder = build(config, _wait_for_clients(grid, config))
    start_grid(
        grid=grid, config=ServerConfig(num_rounds=config.num_server_rounds), strategy=strategy
    )
    print(recorder.close(), flush=True)


def build(config: RunConfig, num_clients: int) -> tuple[FedDTPT, Recorder]:
    """Check everything that a run needs, then put strategy and recorder together.

    Raises
    ------
    ConfigError, DataError, AssetError, ModelError
        If a setting, the data, an embedded asset or the language model's endpoint is not what it
        has to be; the message says which, and what is allowed.
    """
    if config.privacy == "exponential" and config.clients == "simulated":
        require_opendp()  # or every client would fail, each by itself
    task = load_task(config)
    data = load_data(config, 0 if config.clients == "own-data" else num_clients)
    masked_lm = models.masked_lm(config, task)
    vocabulary = masked_lm.vocabulary
    first = seed_tokens(config, task, vocabulary)
    masked_lm.log_likelihood([first])  # a service that does not answer shows it here
    model = models.ready_language_model(config)
    # Held-out questions are the experimenter's, not the federation's: counted, but not limited.
    budget = QueryBudget((config.num_server_rounds + 1) * len(data.test))
    recorder = Recorder(
        config,
        task,
        vocabulary,
        Evaluator(model, task, budget, AnswerCache(store=models.answer_store(config))),
        data.test,
        RunFolder(Path(config.run_folder), f"{task.name}-seed{config.seed}"),
        model.name,
    )
    strategy = FedDTPT(
        initial_prompt=np.array(first, dtype=np.int64),
        embed_fn=models.token_embedder(config, task).embed,
        vocabulary_size=len(vocabulary),
        vocabulary=vocabulary.fingerprint,
        max_tokens=config.max_prompt_tokens,
        aggregation=config.aggregation,
        min_samples=config.min_samples or None,
        guard=config.guard,
        race_candidates=config.race_candidates,
        admissible=_safely(readability(config, task)),
        on_round=recorder.round,
        fraction_fit=config.fraction_fit,
        min_fit_clients=1,
        min_evaluate_clients=1,
        min_available_clients=config.min_available_clients,
        evaluate_fn=recorder.evaluate,
        fit_metrics_aggregation_fn=recorder.fit_metrics,
        evaluate_metrics_aggregation_fn=recorder.evaluate_metrics,
    )
    return strategy, recorder


def _safely(admissible: Callable[[Tokens], bool]) -> Callable[[Tokens], bool]:
    """Leave out a prompt that cannot be judged now: an outage must not end the run."""

    def judged(tokens: Tokens) -> bool:
        try:
            return admissible(tokens)
        except ModelError as error:
            log(WARNING, "a candidate is left out: %s", error)
            return False

    return judged


def _wait_for_clients(grid: Grid, config: RunConfig) -> int:
    """Return the number of connected clients once there are enough."""
    while (connected := len(list(grid.get_node_ids()))) < config.min_available_clients:
        log(INFO, "%d of %d clients connected", connected, config.min_available_clients)
        time.sleep(3)
    return connected
