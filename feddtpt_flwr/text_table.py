"""A table of names and values, as text."""

from collections.abc import Mapping
from io import StringIO

WIDTH = 100
"""Characters in a line of the table, unless a single word needs more."""


def render(title: str, rows: Mapping[str, str]) -> str:
    """Return a table of names and values as text, so wide that no path in it is cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, Text(value))  # prompts and clients' words are not markup
    words = [word for value in rows.values() for word in value.split()]
    longest = max(map(len, rows)) + max(map(len, words), default=0) + len("│  │  │ ")
    text = StringIO()
    Console(file=text, width=max(WIDTH, longest)).print(table)
    return text.getvalue()
