"""The ``feddtpt-flwr`` command."""

import re
import signal
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from click import ClickException
from flwr.common.config import parse_config_args

from feddtpt_flwr.app_files import find_file
from feddtpt_flwr.bundle import BundleError, copy_app, read_app, write_app
from feddtpt_flwr.checked_settings import keys_of
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import DataError
from feddtpt_flwr.fedpit.config import FedPITConfig
from feddtpt_flwr.private_flower import FlowerError, private_flower

APPS: dict[str, type[RunConfig] | type[FedPITConfig]] = {"": RunConfig, "fedpit": FedPITConfig}
"""What checks the settings of each app; the main app has no name."""

NUM_CLIENTS = 4
"""Simulated clients, if nothing else is said."""

_SETTING = re.compile(r"""[^\s=]+=('[^']*'|"[^"]*"|\S+)""")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may hold what must not be printed
)


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
    num_clients: Annotated[int, typer.Option(min=1, help="Simulated clients.")] = NUM_CLIENTS,
    cpus_per_client: Annotated[
        int, typer.Option(min=1, help="Cores reserved for each client at work.")
    ] = 1,
    gpus_per_client: Annotated[
        float,
        typer.Option(
            min=0, help="GPUs, or a share of one, for each client at work; without, it sees none."
        ),
    ] = 0.0,
    app_name: Annotated[
        str, typer.Option("--app", help="Another app of the folder: fedpit (apps/fedpit.toml).")
    ] = "",
) -> None:
    """Run the app of FOLDER in simulation, in this environment and with a SuperLink of its own.

    Unlike a bare 'flwr run' this installs nothing, uses no SuperLink that is already running and
    ends with exit status 1 if the run failed.
    """
    config = _check(folder, app_name, run_config or [], num_clients)
    if gpus_per_client and not _has_gpu():
        raise typer.BadParameter(
            f"{gpus_per_client:g}: torch finds no GPU on this machine; only 0 is allowed",
            param_hint="--gpus-per-client",
        )
    # Whoever ends this command ends the run, too: its processes would go on without it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            app_folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "app"
            if app_name:
                write_app(folder, app_name, app_folder)
            else:
                copy_app(folder, app_folder)
            if isinstance(config, RunConfig):
                _check_files(config, folder, app_folder, num_clients)
            flower = stack.enter_context(private_flower())
            run_id = flower.start_run(
                app_folder,
                run_config or [],
                num_clients=num_clients,
                cpus_per_client=cpus_per_client,
                gpus_per_client=gpus_per_client,
            )
            try:
                status = flower.stream(run_id)
            except KeyboardInterrupt:
                flower.stop(run_id)
                status = flower.status(run_id)
    except FlowerError as error:
        typer.secho(str(error), err=True)
        raise typer.Exit(1) from None
    if status != "finished:completed":
        typer.secho(f"the run ended as {status}", err=True)
        raise typer.Exit(1)


@app.command()
def bundle(
    app_name: Annotated[str, typer.Argument(help="The app: fedpit (apps/fedpit.toml).")],
    target: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    folder: Annotated[Path, typer.Argument(help="Folder of the checkout.")] = Path(),
) -> None:
    """Write the app APP_NAME of FOLDER to TARGET, as a folder of its own for 'flwr run'."""
    try:
        write_app(folder, app_name, target)
    except BundleError as error:
        raise typer.BadParameter(str(error)) from None


@app.command()
def check(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of the Flower app; by default the installed one's settings."),
    ] = None,
    run_config: Annotated[
        list[str] | None,
        typer.Option("--run-config", "-c", help="The run's settings, or its .toml file."),
    ] = None,
    node_config: Annotated[
        list[str] | None,
        typer.Option("--node-config", "-n", help="As flower-supernode will get it."),
    ] = None,
    num_clients: Annotated[
        int,
        typer.Option(min=1, help="Simulated clients, if the node config names no part of theirs."),
    ] = NUM_CLIENTS,
) -> None:
    """See whether this node is ready for a run: models, data, speed and cost.

    Asks the models a few questions; ends with exit status 1 if something must be fixed. Shows
    neither keys nor texts of examples.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from feddtpt_flwr.check import check_node, fixes

    described = _described(folder / "pyproject.toml") if folder else {"config": {}}
    settings = _settings(described, run_config or [])
    findings = []
    console = Console()
    with console.status("looking") as status:
        for finding in check_node(settings, _overrides(node_config or []), num_clients):
            findings.append(finding)
            status.update(f"looked at: {finding.subject}")
    table = Table(title="Check of this node", title_justify="left", show_header=False)
    for finding in findings:
        mark = "[red]fix[/red]" if finding.fix else "[green]ok[/green]"
        table.add_row(mark, finding.subject, escape(finding.result))
    console.print(table)
    if not (to_do := fixes(findings)):
        console.print("Nothing to fix.")
        return
    console.print(f"To fix ({len(to_do)}):")
    for line in to_do:
        console.print(f"- {line}", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


@app.command()
def own_prompt() -> None:
    """Print the prompts that this machine's nodes keep to themselves (privacy = 'synthetic').

    One for each run and node, the newest at the end; they are in FEDDTPT_CACHE until 30 days after
    a run's last message, when this command or a message of another run removes them.
    """
    from feddtpt_flwr.assets import cache_folder
    from feddtpt_flwr.privacy.own_prompts import kept

    try:
        found = kept(cache_folder())
    except OSError as error:
        typer.secho(f"the nodes' state cannot be read: {error}", err=True)
        raise typer.Exit(1) from None
    if not found:
        typer.secho(
            f"no own prompt in {cache_folder()}; runs with privacy = 'synthetic' keep one there, "
            "unless cache-size-mib is 0; FEDDTPT_CACHE must be that of the SuperNode",
            err=True,
        )
        raise typer.Exit(1)
    for own in found:
        accuracy = "not known" if own.accuracy is None else f"{own.accuracy:.3f}"
        typer.echo(
            f"run {own.run}, node {own.client}, round {own.round}, accuracy on its validation "
            f"examples {accuracy}:\n{own.prompt}"
        )


def _check(
    folder: Path, app_name: str, run_config: list[str], num_clients: int
) -> RunConfig | FedPITConfig:
    """Find mistakes in the settings at once: Flower starts for many seconds, then tells less."""
    if app_name not in APPS:
        known = ", ".join(repr(name) for name in APPS if name)
        raise typer.BadParameter(f"--app {app_name!r}: there is no such app; there are: {known}")
    try:
        app = read_app(folder, app_name) if app_name else _described(folder / "pyproject.toml")
        config = APPS[app_name].from_run_config(_settings(app, run_config))
        mistake = ""
        # Where a task's file is, is known when the app is packed.
        if isinstance(config, RunConfig) and not config.task.endswith(".toml"):
            mistake = _too_few(config, num_clients)
    except (BundleError, ConfigError, DataError) as error:
        raise typer.BadParameter(str(error)) from None
    if mistake:
        raise typer.BadParameter(mistake)
    if num_clients < config.min_available_clients:
        # It would wait for clients that never come.
        raise typer.BadParameter(
            f"--num-clients {num_clients}: min-available-clients = {config.min_available_clients} "
            "needs as many or more"
        )
    return config


def _check_files(config: RunConfig, folder: Path, packed: Path, num_clients: int) -> None:
    """Find mistakes in a task and data of the user's own, read from where the run finds them."""
    from feddtpt_flwr.experiment import load_data

    own_task = config.task.endswith(".toml")
    if config.clients != "simulated" or not (own_task or config.data_source == "files"):
        return
    names = {"train_file": config.train_file, "test_file": config.test_file}
    if own_task:
        names["task"] = config.task
    try:
        files = {key: _in_run(name, folder, packed) for key, name in names.items() if name}
        config = config.model_copy(update=files)
        mistake = _too_few(config, num_clients)
        load_data(config, num_clients)
    except DataError as error:
        raise typer.BadParameter(str(error)) from None
    if mistake:
        raise typer.BadParameter(mistake)


def _in_run(name: str, folder: Path, packed: Path) -> str:
    """Return the full path, in ``folder`` if it was packed, of the file that a run will find."""
    # An app without this package in it uses the installed one, as this command does.
    file = find_file(name, packed if (packed / str(__package__)).is_dir() else None)
    if file.is_relative_to(within := packed.resolve()):
        return str(folder.resolve() / file.relative_to(within))
    return str(file)


def _too_few(config: RunConfig, num_clients: int) -> str:
    """Return why the settings leave simulated clients too few queries; empty if they do not."""
    from feddtpt_flwr.client_limits import Sizes, too_few_in_run, too_few_queries
    from feddtpt_flwr.experiment import load_task

    if config.clients != "simulated":
        return ""  # how much there is, nodes know
    sizes = Sizes.wanted(config, load_task(config))
    return too_few_queries(config, sizes) or too_few_in_run(config, sizes, num_clients)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _described(file: Path) -> dict[str, Any]:
    """Return what a project file says of its Flower app, components and settings among it."""
    try:
        app = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["flwr"]["app"]
        return {**app, "config": app["config"]}
    except OSError:
        raise typer.BadParameter(f"{file} does not exist") from None
    except KeyError:
        raise typer.BadParameter(f"{file} describes no Flower app with settings") from None
    except ValueError as error:
        raise typer.BadParameter(f"{file}: {error}") from None


def _settings(app: Mapping[str, Any], run_config: list[str]) -> dict[str, Any]:
    """Return the settings of a run, without those that an app of somebody else's adds to them."""
    settings = {**app["config"], **_overrides(run_config)}
    server = str(app.get("components", {}).get("serverapp", __package__))
    if server.partition(".")[0] == __package__:
        return settings
    ours = keys_of(RunConfig)
    return {key: value for key, value in settings.items() if key in ours}


def _overrides(run_config: list[str]) -> dict[str, Any]:
    for text in run_config:
        if not text.endswith(".toml") and (rest := _SETTING.sub("", text).strip()):
            # Flower would leave it out without a word.
            raise typer.BadParameter(f"{rest!r} in {text!r} is not of the form key=value")
    try:
        return dict(parse_config_args(run_config))
    except OSError as error:
        raise typer.BadParameter(f"{error.filename} does not exist") from None
    except (ValueError, ClickException) as error:
        raise typer.BadParameter(f"{' '.join(run_config)}: {error}") from None


if __name__ == "__main__":
    app()
