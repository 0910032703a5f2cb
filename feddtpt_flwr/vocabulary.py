"""The token vocabulary in which prompts are written: the masked language model's."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORD_MARKS = ("Ġ", "▁")  # how byte-level BPE and SentencePiece mark a leading space
_CONTINUATION = "##"  # how WordPiece marks that there is none
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # how SentencePiece spells one of a letter that it lacks
_WITHIN = ("\u00a1", "\u00bf")  # as which byte-level vocabularies spell bytes within a letter


class Vocabulary:
    """Text to token ids and back, and which tokens are whole words.

    Parameters
    ----------
    tokenizer : tokenizers.Tokenizer or transformers.PreTrainedTokenizerFast
        The masked language model's tokenizer. Of the latter only the former inside it is used, so
        that a node without transformers reads and writes prompts like one with it.
    beyond_ascii : bool
        Whether words with other letters than A to Z may be proposed.

    Raises
    ------
    ValueError
        If it is a tokenizer that has no `tokenizers.Tokenizer` inside.
    """

    def __init__(self, tokenizer: Any, *, beyond_ascii: bool = False) -> None:
        self._tokenizer = _plain(tokenizer)
        self._beyond_ascii = beyond_ascii
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._pieces = [self._tokenizer.id_to_token(token) or "" for token in range(size)]
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = frozenset(token for token, what in added.items() if what.special)
        # Pieces prove nothing: "##" is also a heading's mark, and "Ġ" a letter of Malta's.
        self._wordpiece = type(self._tokenizer.model).__name__ == "WordPiece"
        self._byte_level = "ByteLevel" in repr(self._tokenizer.decoder)

    def __len__(self) -> int:
        """Return the number of token ids."""
        return len(self._pieces)

    @cached_property
    def fingerprint(self) -> str:
        """A short hash by which two nodes tell whether they speak of the same tokens."""
        return hashlib.sha256("\n".join(self._pieces).encode()).hexdigest()[:16]

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of ``text``, each word with its leading space, nothing added."""
        # Every word carries its space, the first one too, so that words can change places.
        return tuple(self._tokenizer.encode(" " + text.strip(), add_special_tokens=False).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens`` without leading or trailing space."""
        return self.text(tokens).strip()

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of ``tokens`` with the space at its ends that belongs to them."""
        return str(self._tokenizer.decode([int(i) for i in tokens], skip_special_tokens=False))

    def token_id(self, piece: str) -> int | None:
        """Return the id of the token spelt ``piece``, such as ``"[MASK]"``; None if none is."""
        found: int | None = self._tokenizer.token_to_id(piece)
        return found

    def piece(self, token: int) -> str:
        """Return how the vocabulary spells ``token``, marks of spaces and pieces included."""
        return self._pieces[token]

    def spans(self, tokens: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of ``tokens``, and the half-open span of each token in it."""
        # Token by token, a multi-byte character or a cleaned-up space may come out differently;
        # the whole text's beginnings are what counts.
        ends = [len(self.text(tokens[: i + 1])) for i in range(len(tokens))]
        return self.text(tokens), list(zip([0, *ends][: len(ends)], ends, strict=True))

    def starts_word(self, token: int) -> bool:
        """Return whether ``token`` begins a word or is a mark of its own, such as a full stop."""
        piece = self._pieces[token]
        if self._wordpiece:
            return not piece.startswith(_CONTINUATION)
        if _BYTE.fullmatch(piece) or (self._byte_level and _WITHIN[0] <= piece[:1] <= _WITHIN[1]):
            return False  # it begins within a letter
        return piece.startswith(_WORD_MARKS) or not piece[:1].isalnum()

    def words(self, tokens: Sequence[int]) -> list[tuple[int, int]]:
        """Return the half-open token spans of the words in ``tokens``."""
        starts = [i for i, token in enumerate(tokens) if i == 0 or self.starts_word(token)]
        return list(pairwise([*starts, len(tokens)]))

    def proposable(self, excluded_words: Iterable[str] = ()) -> NDArray[np.bool_]:
        """Return which tokens may be proposed: whole words of letters, and simple punctuation.

        The letters are A to Z, or all there are with ``beyond_ascii``.

        Parameters
        ----------
        excluded_words : Iterable[str]
            Words not to propose, whatever their case; the answer words, for instance. Of one that
            consists of several, as "not likely", none is proposed.

        Returns
        -------
        NDArray[np.bool_]
            Mask of shape ``(len(self),)``.
        """
        folded = [word.casefold() for word in excluded_words]
        excluded = {*folded, *(part for word in folded for part in letters(word))}
        allowed = np.zeros(len(self), dtype=bool)
        allowed[[token for token, word in self._words if word not in excluded]] = True
        return allowed

    @cached_property
    def _words(self) -> list[tuple[int, str]]:
        """Tokens that are whole words of letters or simple punctuation, and the casefolded word."""
        found = []
        for token, piece in enumerate(self._pieces):
            if token in self._special or not self.starts_word(token):
                continue
            marked = self._wordpiece or piece.startswith(_WORD_MARKS)
            word = piece.lstrip("".join(_WORD_MARKS))
            if self._beyond_ascii and marked and not word.isascii():
                word = self._word_beyond_ascii(token)
            if word in {",", ".", ":", "?", ";", "!"}:
                fits = not marked or self._wordpiece
            else:
                letters = _is_letters(word) and (word.isascii() or self._beyond_ascii)
                short = len(word) == 1 and word.isascii() and word not in {"a", "I"}
                fits = marked and letters and not short
            if fits:
                found.append((token, word.casefold()))
        return found

    def _word_beyond_ascii(self, token: int) -> str:
        """Return the word that a token is, or nothing if the word would be read as other tokens.

        A byte-level vocabulary spells bytes and not letters, and some tokenizers leave out accents.
        """
        word = self.decode([token])
        return word if self.encode(word) == (token,) else ""


def letters(text: str) -> list[str]:
    """Return the runs of letters in a text, each with what is written above and below them."""
    runs = groupby(text, key=lambda sign: sign.isalpha() or is_mark(sign))
    return ["".join(run) for are_letters, run in runs if are_letters]


def is_mark(sign: str) -> bool:
    """Return whether a sign is written above, below or around a letter."""
    return unicodedata.category(sign) in ("Mn", "Mc")


def _is_letters(word: str) -> bool:
    return word.isalpha() or (word[:1].isalpha() and letters(word) == [word])


def _plain(tokenizer: Any) -> Any:
    """Return a `tokenizers.Tokenizer` that neither cuts nor pads what it reads."""
    from tokenizers import Tokenizer

    plain = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(plain, Tokenizer):
        raise ValueError(
            f"the tokenizer {type(tokenizer).__name__} has no tokenizer.json; a prompt needs one "
            "that the tokenizers library reads"
        )
    if plain is tokenizer and plain.truncation is None and plain.padding is None:
        return plain
    # A copy: transformers switches cutting and padding of its own one on and off.
    plain = Tokenizer.from_str(plain.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain
