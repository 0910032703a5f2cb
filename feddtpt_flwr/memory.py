"""Results that are asked for again and again, computed in batches and kept."""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Memory(Generic[Key, Value]):
    """A bounded memory in front of a function that computes many values at once.

    Parameters
    ----------
    compute : Callable[[list[Key]], Sequence[Value]]
        Gives the values of different keys, in order.
    capacity : int
        Most values kept; those that were asked for the longest time ago are forgotten.
    """

    def __init__(
        self, compute: Callable[[list[Key]], Sequence[Value]], capacity: int = 4096
    ) -> None:
        self._compute = compute
        self._capacity = capacity
        self._values: dict[Key, Value] = {}

    def get(self, keys: Sequence[Key]) -> list[Value]:
        """Return the value of every key; what is missing is computed in one call."""
        found: dict[Key, Value] = {}
        for key in dict.fromkeys(keys):
            with suppress(KeyError):  # also where another thread has just taken it out
                found[key] = self._values.pop(key)
        self._values |= found  # at the end now
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            new = dict(zip(missing, self._compute(missing), strict=True))
            found |= new
            self._values |= new
            for old in list(self._values)[: max(0, len(self._values) - self._capacity)]:
                del self._values[old]
        return [found[key] for key in keys]
