"""What of a run's epsilon a client has spent: asking twice does not buy a second answer."""

from typing import Literal

from flwr.common import ConfigRecord, RecordDict

LEDGER_KEY = "privacy-ledger"

Phase = Literal["search", "score"]


class Ledger:
    """The phases in which a client has answered, in its state.

    Noise protects one answer. A server that asks the same question again and again, or in more
    rounds than the run has, would average it away.

    Parameters
    ----------
    state : RecordDict
        Flower's client state.
    num_rounds : int
        Rounds of the run.
    """

    def __init__(self, state: RecordDict, num_rounds: int) -> None:
        self._state = state
        self._num_rounds = num_rounds

    def open(self, phase: Phase, server_round: int) -> bool:
        """Return whether an answer may still be given in this phase of this round."""
        return 1 <= server_round <= self._num_rounds and server_round not in self._answered(phase)

    def close(self, phase: Phase, server_round: int) -> None:
        """Note that an answer is given."""
        answered = {name: self._answered(name) for name in ("search", "score")}
        answered[phase] = [*answered[phase], server_round]
        self._state[LEDGER_KEY] = ConfigRecord({**answered})

    def _answered(self, phase: str) -> list[int]:
        record = self._state.config_records.get(LEDGER_KEY)
        rounds = record[phase] if record is not None else []
        return [int(number) for number in rounds] if isinstance(rounds, list) else []
