"""What a configuration stands for: its task, its examples, its first prompt; all checked."""

from functools import cache

from feddtpt_flwr import models
from feddtpt_flwr.app_files import find_file
from feddtpt_flwr.config import ConfigError, RunConfig
from feddtpt_flwr.data import (
    FederatedData,
    FileSource,
    Source,
    Task,
    get_source,
    get_task,
    glue_files,
    load_federated_data,
)
from feddtpt_flwr.data.tasks import GLUE_LAYOUTS
from feddtpt_flwr.readability import Readability
from feddtpt_flwr.vocabulary import Vocabulary
from strategies.candidates import Tokens


def load_task(config: RunConfig) -> Task:
    """Return the task that the configuration names.

    Raises
    ------
    DataError
        If there is none of this name, or its file is not a valid task.
    """
    if config.task.endswith(".toml"):
        return get_task(find_file(config.task))
    return get_task(config.task)


@cache
def load_data(config: RunConfig, num_clients: int) -> FederatedData:
    """Draw the examples of all clients, the public set and the test set.

    Parameters
    ----------
    config : RunConfig
        Settings of the run.
    num_clients : int
        Clients that get a part of the run's data, 0 if they have data of their own.

    Raises
    ------
    DataError
        If the source lacks a file, a column, a label or enough examples.
    """
    task = load_task(config)
    return load_federated_data(
        task,
        _source(config, task),
        num_clients=num_clients,
        k_shot=config.k_shot,
        public_per_class=config.public_per_class,
        test_size=config.test_size,
        partition=config.partition,
        dirichlet_alpha=config.dirichlet_alpha,
        seed=config.seed,
    )


def seed_tokens(config: RunConfig, task: Task, vocabulary: Vocabulary) -> Tokens:
    """Return the first global prompt.

    Raises
    ------
    ConfigError
        If it is empty or longer than the limit.
    """
    text = config.seed_prompt or task.seed_prompt
    tokens = vocabulary.encode(text)
    if not 1 <= len(tokens) <= config.max_prompt_tokens:
        raise ConfigError(
            f"seed-prompt = {text!r}: has {len(tokens)} tokens, allowed are 1 to "
            f"max-prompt-tokens = {config.max_prompt_tokens}"
        )
    return tokens


def readability(config: RunConfig, task: Task) -> Readability:
    """Return what tells the prompts that still read as language."""
    masked_lm = models.masked_lm(config, task)
    seed = seed_tokens(config, task, masked_lm.vocabulary)
    return Readability(masked_lm, seed, config.max_fluency_loss)


def _source(config: RunConfig, task: Task) -> Source:
    if config.data_source == "files":
        train = find_file(config.train_file)
        test = str(find_file(config.test_file)) if config.test_file else None
        # A task of one's own may bear the name of one of GLUE's.
        if config.task in GLUE_LAYOUTS and train.suffix == ".tsv":
            return glue_files(task.name, train.parent, train_file=train.name, test_file=test)
        return FileSource(train, test)
    return get_source(task.name, None if config.data_source == "default" else config.data_source)
