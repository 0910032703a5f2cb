"""Tasks, where their rows come from, and the few-shot data of every client."""

from feddtpt_flwr.data.cleaning import Cleaning, Tables
from feddtpt_flwr.data.errors import DataError
from feddtpt_flwr.data.sampling import (
    ClientData,
    FederatedData,
    Partition,
    draw,
    load_federated_data,
    to_examples,
)
from feddtpt_flwr.data.sources import EmbeddedSource, FileSource, HubSource, Source
from feddtpt_flwr.data.task import Example, Task
from feddtpt_flwr.data.tasks import (
    DEFAULT_TASK,
    SOURCES,
    TASKS,
    get_source,
    get_task,
    glue_files,
)

__all__ = [
    "DEFAULT_TASK",
    "SOURCES",
    "TASKS",
    "Cleaning",
    "ClientData",
    "DataError",
    "EmbeddedSource",
    "Example",
    "FederatedData",
    "FileSource",
    "HubSource",
    "Partition",
    "Source",
    "Tables",
    "Task",
    "draw",
    "get_source",
    "get_task",
    "glue_files",
    "load_federated_data",
    "to_examples",
]
