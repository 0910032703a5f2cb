"""A federation that keeps several global prompts alive, to see whether that is worth its queries.

Each is sent to some of the clients. What comes back is made into candidates with the prompt that it
was made of; all of them and all prompts alive are compared, and the best live on.
"""

from dataclasses import replace

import numpy as np

from feddtpt_flwr.config import RunConfig
from feddtpt_flwr.data import FederatedData
from simulations.local_federation import Federation
from strategies.by_model import Count, compared_by
from strategies.candidates import Candidate, Tokens
from strategies.wire import ROUND_KEY, read_scores


class SeveralAlive(Federation):
    """The app's clients, and a server with up to ``most`` global prompts.

    Parameters
    ----------
    config, data
        As of `Federation`.
    most : int
        Prompts that live on, at least 1.

    Attributes
    ----------
    alive : list[Tokens]
        These prompts, the best first.
    """

    def __init__(self, config: RunConfig, data: FederatedData, most: int) -> None:
        super().__init__(config, data)
        self._most = most
        self.alive: list[Tokens] = [self._rounds.prompt]

    @property
    def prompt(self) -> str:
        """The best global prompt."""
        return self._vocabulary.decode(self.alive[0])

    def round(self, number: int) -> None:
        """Search from every prompt alive, compare all, and let the best live on."""
        candidates = self._candidates(number)
        if len(candidates) == 1:
            return
        tokens = [candidate.tokens for candidate in candidates]
        counts = [
            Count("", read_scores(reply.metrics, tokens))
            for reply in self.compare(self._rounds, number, tokens)
        ]
        scores = compared_by(counts, "mean")
        # Ties go to the earlier one; those alive come first.
        best_first = sorted(tokens, key=lambda prompt: -scores[prompt].accuracy)
        self.alive = best_first[: self._most]

    def _candidates(self, number: int) -> list[Candidate]:
        """Return what is compared: all prompts alive, then as many others as one would have."""
        share = -(-self.settings.race_candidates // len(self.alive))
        settings = replace(self.settings, race_candidates=share)
        names = list(self._clients)
        found = {tokens: Candidate(tokens, "alive") for tokens in self.alive}
        for place, base in enumerate(self.alive):
            rounds = self.rounds(settings, base)
            rounds.begin_round(number)
            told = {**rounds.search_config(len(names)), ROUND_KEY: number}
            replies = [
                self._reply(name, self._clients[name].search(np.array(base), told))
                for name in names[place :: len(self.alive)]
            ]
            rounds.read_uploads(number, replies, 0)
            rounds.propose()
            for candidate in rounds.candidates:
                found.setdefault(candidate.tokens, candidate)
        return list(found.values())
