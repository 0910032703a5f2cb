"""FedPIT's server: the first adapter, the strategy, the held-out evaluation, the run folder."""

from logging import WARNING
from pathlib import Path

from flwr.app import Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

from feddtpt_flwr import logs
from feddtpt_flwr.config import ConfigError
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.fedpit.lora import AdaptedModel
from feddtpt_flwr.fedpit.node import adapted_model, check_choices
from feddtpt_flwr.fedpit.partition import divide, hold_out
from feddtpt_flwr.fedpit.recorder import Recorder
from feddtpt_flwr.fedpit.tasks import load_instructions
from feddtpt_flwr.patience import make_patient, wait_for_clients
from feddtpt_flwr.run_folder import RunFolder
from strategies.adapters import stack_layers, to_record
from strategies.fedpit import FedPIT

app = ServerApp()

SMALLEST_RATE = 3e-4
"""Learning rate below which bfloat16, with its three digits, loses much of an adapter's update."""

TIMEOUT = 24 * 3600.0
"""Seconds to wait for a round's replies: a round can take hours on nodes without a GPU."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; a mistake in the configuration ends it before any training."""
    logs.begin(run=str(context.run_id), node="server")
    grid = make_patient(grid)
    config = FedPITConfig.from_run_config(context.run_config)
    data = load_instructions(config)
    test = hold_out(data.test, config.test_size, config.seed)
    num_clients = wait_for_clients(grid, config.min_available_clients)
    if config.clients == "simulated":
        divide(
            data.train,
            num_clients=num_clients,
            examples_per_client=config.examples_per_client,
            partition=config.partition,
            dirichlet_alpha=config.dirichlet_alpha,
            seed=config.seed,
        )  # too few instructions show here, and not on every node
    _warn_of_rounding(config)
    model = adapted_model(config)
    check_choices(config, model, (*test, *(data.train if config.clients == "simulated" else ())))
    if config.start_adapter:
        _read_adapter(model, config.start_adapter)
    name = Path(config.task).stem
    folder = RunFolder(Path(config.run_folder), f"fedpit-{name}-seed{config.seed}")
    recorder = Recorder(config, model, test, folder)
    strategy = FedPIT(
        wire_dtype=config.upload_dtype,
        proximal_mu=config.proximal_mu,
        most_examples=config.examples_per_client,
        on_phase=recorder.phase,
        on_average=recorder.keep,
        fraction_train=config.fraction_train,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=config.min_available_clients,
    )
    strategy.start(
        grid,
        initial_arrays=to_record(stack_layers(model.adapter), "float32"),
        num_rounds=config.num_server_rounds,
        timeout=TIMEOUT,
        evaluate_fn=recorder.evaluate,
    )
    logs.show(recorder.close())


def _warn_of_rounding(config: FedPITConfig) -> None:
    if config.upload_dtype == "bfloat16" and config.learning_rate < SMALLEST_RATE:
        log(
            WARNING,
            "learning-rate = %s with upload-dtype = 'bfloat16': much of such small steps is "
            "rounded away; set upload-dtype = 'float32', or a learning-rate of %s or more",
            config.learning_rate,
            SMALLEST_RATE,
        )


def _read_adapter(model: AdaptedModel, folder: str) -> None:
    try:
        model.read(Path(folder))
    except (OSError, ValueError) as error:
        raise ConfigError(f"start-adapter = {folder!r}: cannot begin with this ({error})") from None
