"""Text of others (a policy, a data set, a server), made fit to be shown: nothing in it is taken for
markup, for a command to the terminal, or for a script.

In: any text. Out: the same text for a terminal, a rich table, HTML, Markdown, JSON, a sheet or a figure.
Whatever shows text of others takes it from here.
"""

import html
import json
import re
import reprlib
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.progress import Progress, ProgressColumn
from rich.table import Column, Table
from rich.text import Text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what may begin a formula when a cell is edited
LONGEST = 200  # characters of a name within a message
# Control characters but line feed and tab, line separators, what turns the direction of writing
# around, halves of surrogate pairs.
_UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = re.compile("[\n\t]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
# An underscore within a word is none of Markdown's marks.
_MARKS = re.compile(r"[&<>|*`~#\\\[\]{}]|(?<![^\W_])_|_(?![^\W_])")


def printable(text: object) -> str:
    r"""`text` with what cannot be printed written out, such as \x1b."""
    return _UNPRINTABLE.sub(_write_out, str(text))


def in_line(text: object, longest: int = LONGEST) -> str:
    """`text` as part of a one-line message: also line feeds written out, cut to `longest`."""
    text = str(text)
    shown = _BREAKS.sub(_write_out, printable(text[: longest + 1]))
    return shown if len(text) <= longest else f"{shown[: longest - 1]}…"


def brief(value: object) -> str:
    """The beginning of `value` as Python writes it, however long or deep it is."""
    return printable(_SHORT.repr(value))


def _write_out(match: re.Match) -> str:
    return repr(match[0])[1:-1]


def as_cell(text: object) -> Text:
    """Returns the text as a cell for rich, in which markup is ordinary text."""
    return Text(printable(text))


def as_html(text: object) -> str:
    return html.escape(printable(text))


def as_markdown(text: object) -> str:
    """Returns the text as a cell of a Markdown table: marks as entities, line feeds as <br>."""
    entities = _MARKS.sub(lambda match: f"&#{ord(match[0])};", printable(text).replace("\t", " "))
    return entities.replace("\n", "<br>")


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The lines, the first as header; cells are Markdown already."""
    header, *rest = lines
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rest))


def as_json(value: object) -> str:
    """One line of JSON; what cannot be printed is escaped, all else is written as it is."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def as_sheet(text: object) -> str:
    """Returns the text as a CSV cell that no spreadsheet reads as a formula: such a text gets an apostrophe
    in front."""
    text = printable(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def as_label(text: object) -> str:
    """Returns the text as a label for matplotlib, which would read mathematics between dollar signs."""
    return printable(text).replace("$", r"\$")


def progress_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """Returns a progress bar of rich, which shows in a terminal only."""
    return Progress(*columns, console=console, disable=not console.is_terminal)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """Prints a table to the terminal; every cell may hold foreign text."""
    table = Table(*(Column(as_cell(name)) for name in header))
    if title is not None:
        table.title = Text(printable(title), "table.title")
    for row in rows:
        table.add_row(*map(as_cell, row))
    Console().print(table)
