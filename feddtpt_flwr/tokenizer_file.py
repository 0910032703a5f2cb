"""Tokenizers read with the tokenizers library alone, for nodes without transformers."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(source: str) -> "Tokenizer":
    """Load a tokenizer without transformers.

    Parameters
    ----------
    source : str
        A name on the Hugging Face hub, a folder with a ``tokenizer.json``, or that file.

    Raises
    ------
    ValueError
        If there is none.
    """
    from tokenizers import Tokenizer

    path = Path(source)
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        from httpx import HTTPError
        from huggingface_hub import hf_hub_download

        # A name that no model can have is a ValueError.
        failures: tuple[type[Exception], ...] = (OSError, ValueError, HTTPError)
        try:
            path = Path(hf_hub_download(source, "tokenizer.json"))
        except failures as error:
            raise ValueError(
                f"there is no {path}, and no tokenizer.json of that name can be had from the "
                f"Hugging Face hub ({type(error).__name__})"
            ) from None
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path} is no tokenizer.json ({error})") from None


def mask_token(tokenizer: "Tokenizer", source: str) -> int:
    """Return the id of the token that stands for a gap.

    Raises
    ------
    ValueError
        If the tokenizer, which came from ``source``, has none.
    """
    for token, added in tokenizer.get_added_tokens_decoder().items():
        if added.special and added.content.strip("[]<>|").lower() == "mask":
            return int(token)
    raise ValueError(f"{source!r} has no mask token: it is not a masked language model's")
