"""The ``feddtpt-flwr`` command."""

import tomllib
from pathlib import Path
from typing import Annotated

import typer
from flwr.common.config import parse_config_args

from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.private_flower import FlowerError, private_flower

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def _main() -> None:
    """Federated discrete prompt tuning for black-box language models."""


@app.command()
def simulate(
    folder: Annotated[
        Path, typer.Argument(help="Folder of the Flower app, with its pyproject.toml.")
    ] = Path(),
    run_config: Annotated[
        list[str] | None,
        typer.Option(
            "--run-config", "-c", help="Settings, such as 'seed=1 k-shot=8', or a .toml file."
        ),
    ] = None,
    num_clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = 4,
    cpus_per_client: Annotated[
        int, typer.Option(min=1, help="Cores reserved for each client at work.")
    ] = 1,
) -> None:
    """Run the app in simulation, in this environment and with a SuperLink of its own.

    Unlike a bare ``flwr run`` this installs nothing, uses no SuperLink that is already running and
    ends with exit status 1 if the run failed.
    """
    _check(folder, run_config or [])
    try:
        with private_flower() as flower:
            run_id = flower.start_run(
                folder.resolve(),
                run_config or [],
                num_clients=num_clients,
                cpus_per_client=cpus_per_client,
            )
            try:
                flower.stream(run_id)
            except KeyboardInterrupt:
                flower.stop(run_id)
            status = flower.status(run_id)
    except FlowerError as error:
        typer.secho(str(error), err=True)
        raise typer.Exit(1) from None
    if status != "finished:completed":
        typer.secho(f"the run ended as {status}", err=True)
        raise typer.Exit(1)


def _check(folder: Path, run_config: list[str]) -> None:
    """Find mistakes in the settings at once: Flower starts for many seconds, then tells less."""
    file = folder / "pyproject.toml"
    try:
        app_config = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        overrides = parse_config_args(run_config)
    except FileNotFoundError as error:
        raise typer.BadParameter(f"{error.filename} does not exist") from None
    except KeyError:
        raise typer.BadParameter(f"{file} describes no Flower app") from None
    try:
        RunConfig.from_run_config({**app_config["config"], **overrides})
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


if __name__ == "__main__":
    app()
