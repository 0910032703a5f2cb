"""Settings that are read once, checked, and frozen, whatever they are settings of."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A value in the run's configuration is not allowed."""


def kebab(name: str) -> str:
    """Return an attribute's name as it stands in the configuration."""
    return name.replace("_", "-")


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the names of all settings of a model as they stand in the configuration."""
    return [kebab(name) for name in model.model_fields]


class CheckedSettings(BaseModel):
    """Typed settings, with hyphens in their names where Flower hands them over."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=kebab, populate_by_name=True
    )

    @classmethod
    def checked(cls, values: Mapping[str, Any], beside: Sequence[str] = ()) -> Self:
        """Read settings.

        Parameters
        ----------
        values : Mapping[str, Any]
            By their names in the configuration.
        beside : Sequence[str]
            Keys that are allowed as well and read elsewhere; errors name them too.

        Raises
        ------
        ConfigError
            One line for every key that is unknown or whose value is not allowed, with the key, the
            value and what is allowed.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            known = [*keys_of(cls), *beside]
            raise ConfigError("\n".join(_explain(e, known) for e in error.errors())) from None

    def to_run_config(self) -> dict[str, Any]:
        """Return the settings under their names in the configuration."""
        return self.model_dump(by_alias=True)


def _explain(error: Any, known: Sequence[str]) -> str:
    """Turn one of pydantic's errors into a line that names key, value and what is allowed."""
    key, value = ".".join(map(str, error["loc"])), error["input"]
    if error["type"] == "extra_forbidden":
        # Without the value: it may be a key of another kind.
        return f"unknown key {key!r}; keys: {', '.join(known)}"
    return f"{key} = {value!r}: {error['msg'][0].lower()}{error['msg'][1:]}"
