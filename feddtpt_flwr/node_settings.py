"""What the operator of a node may set, whatever the method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from feddtpt_flwr.checked_settings import CheckedSettings, ConfigError, kebab


@dataclass(frozen=True)
class Part:
    """Which part of the run's data a simulated node has: ``number`` of ``total``, from 0."""

    number: int
    total: int


class NodeSettings(CheckedSettings):
    """A node config apart from the run's settings that it replaces.

    Attributes
    ----------
    node_name : str
        What the server's history calls the node; empty if the operator did not say.
    partition_id, num_partitions : int, optional
        Its part of the run's data, in a simulation.
    data_path : str
        Its own file, in a deployment. Names of further fields about it begin with ``data_``.
    """

    node_name: str = ""
    partition_id: int | None = Field(None, ge=0)
    num_partitions: int | None = Field(None, ge=1)
    data_path: str = ""

    @classmethod
    def read(cls, node_config: Mapping[str, Any], overrides: Sequence[str]) -> Self:
        """Check a node config, apart from the settings of the run that it may replace.

        Raises
        ------
        ConfigError
            If a key is unknown or a value not allowed.
        """
        own = {key: value for key, value in node_config.items() if key not in overrides}
        try:
            return cls.checked(own, beside=overrides)
        except ConfigError as error:
            lines = str(error).splitlines()
            raise ConfigError("\n".join(f"node config: {line}" for line in lines)) from None

    def part(self) -> Part:
        """Return which part of the run's data the node has.

        Raises
        ------
        ConfigError
            If it is not said, or a file is named that would not be used.
        """
        for key in type(self).model_fields:
            if key.startswith("data_") and (value := getattr(self, key)):
                raise ConfigError(
                    f"node config: {kebab(key)} = {value!r}: this run has clients = "
                    "'simulated' and would not use it; data of the nodes' own need clients = "
                    "'own-data'"
                )
        if self.partition_id is None or self.num_partitions is None:
            raise ConfigError(
                "node config: partition-id or num-partitions is missing: clients = 'simulated' "
                "needs both; for data of the nodes' own set clients = 'own-data'"
            )
        if self.partition_id >= self.num_partitions:
            raise ConfigError(
                f"node config: partition-id = {self.partition_id}: 0 to num-partitions - 1 = "
                f"{self.num_partitions - 1} is allowed"
            )
        return Part(self.partition_id, self.num_partitions)

    def own_path(self, example: str) -> Path:
        """Return the node's own file; ``example`` shows in the error what its name looks like.

        Raises
        ------
        ConfigError
            If none is named, or a part of the run's data is.
        """
        if self.partition_id is not None or self.num_partitions is not None:
            raise ConfigError(
                f"node config: partition-id = {self.partition_id}: only clients = 'simulated' has "
                "partitions; this run has clients = 'own-data'"
            )
        if not self.data_path:
            raise ConfigError(
                "node config: data-path is missing: with clients = 'own-data' every node names its "
                f"file, as in flower-supernode --node-config \"data-path='{example}'\""
            )
        return Path(self.data_path).expanduser()
