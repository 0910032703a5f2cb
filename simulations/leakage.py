"""How much of a client's private texts shows in the prompts that it uploads.

Words that a search puts in occur in a client's texts by chance: "the film" is in every review. So
they are also looked up in the texts of the other clients, who have as many. What a client's own
texts have more of than the others' is what the uploads give away about them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

PART = 4
"""Letters or digits in a row by which a part of a word is recognised."""


@dataclass(frozen=True)
class Upload:
    """The prompt that a client was sent, and what it sent back of its making, both as text."""

    client: str
    sent: str
    prompt: str


@dataclass(frozen=True)
class Leakage:
    """Counts over some uploads. Those over other clients are means, so no whole numbers.

    Attributes
    ----------
    uploads : int
        Uploads that were looked at.
    new_words : int
        Different words of each upload that the prompt sent does not have.
    in_own, in_others : float
        New words that occur in the client's own texts, and in another client's texts.
    own_only, others_only : float
        New words that occur in no texts but the client's own, and in none but another's.
    own_parts, others_parts : float
        New words that have a part in common with a word of the client's own only, and with a word
        of another's only.
    canaries : int
        New words that have a part in common with one of the client's canaries.
    """

    uploads: int = 0
    new_words: int = 0
    in_own: float = 0
    in_others: float = 0
    own_only: float = 0
    others_only: float = 0
    own_parts: float = 0
    others_parts: float = 0
    canaries: int = 0

    def __add__(self, other: "Leakage") -> "Leakage":
        """Return the counts over both."""
        theirs = asdict(other)
        return Leakage(**{key: value + theirs[key] for key, value in asdict(self).items()})

    def leak(self) -> float | None:
        """Return the share of new words in the own texts minus that in others', in [-1, 1].

        None if there are no new words.
        """
        return (self.in_own - self.in_others) / self.new_words if self.new_words else None


def words(text: str) -> frozenset[str]:
    """Return the different words and numbers in ``text``, case folded."""
    return frozenset(re.findall(r"[^\W_]+", text.casefold()))


def new_words(upload: Upload) -> frozenset[str]:
    """Return the words of an upload that the prompt sent does not have."""
    return words(upload.prompt) - words(upload.sent)


def common_part(word: str, others: frozenset[str], length: int = PART) -> bool:
    """Return whether ``word`` has ``length`` characters in a row in common with one of others."""
    parts = {word[i : i + length] for i in range(len(word) - length + 1)}
    return any(part in other for other in others for part in parts)


def measure(
    uploads: Sequence[Upload],
    texts: Mapping[str, Sequence[str]],
    public: Sequence[str] = (),
    canaries: Mapping[str, Sequence[str]] | None = None,
) -> Leakage:
    """Look up what was uploaded in everybody's texts.

    Parameters
    ----------
    uploads : Sequence[Upload]
        What the clients sent.
    texts : Mapping[str, Sequence[str]]
        Each client's private texts; two clients or more, with about as many words each.
    public : Sequence[str]
        Texts that all know; their words are nobody's own.
    canaries : Mapping[str, Sequence[str]], optional
        Words that were planted in each client's texts.

    Raises
    ------
    ValueError
        If there are fewer than two clients: then nothing says what chance would give.
    """
    if len(texts) < 2:
        raise ValueError(f"the texts of 2 clients or more are needed, got {len(texts)}")
    of = {client: words("\n".join(mine)) for client, mine in texts.items()}
    shared = words("\n".join(public))
    only = {
        client: mine - shared - frozenset().union(*(of[other] for other in of if other != client))
        for client, mine in of.items()
    }
    planted = {client: words(" ".join(mine)) for client, mine in (canaries or {}).items()}
    total = Leakage()
    for upload in uploads:
        me, others = upload.client, [client for client in of if client != upload.client]
        new = new_words(upload)
        total += Leakage(
            uploads=1,
            new_words=len(new),
            in_own=len(new & of[me]),
            in_others=fmean(len(new & of[other]) for other in others),
            own_only=len(new & only[me]),
            others_only=fmean(len(new & only[other]) for other in others),
            own_parts=sum(common_part(word, only[me]) for word in new),
            others_parts=fmean(sum(common_part(w, only[o]) for w in new) for o in others),
            canaries=sum(common_part(word, planted.get(me, frozenset())) for word in new),
        )
    return total
