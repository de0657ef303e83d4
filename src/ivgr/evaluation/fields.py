"""One row of a benchmark: its columns, under whatever names the field gives them, become a `Row`.

In: a dict of column values (texts of a TSV, values of a parquet), without images. Out: a `Row`.
"""

import ast
import re
import string
from dataclasses import dataclass, field, replace

from ivgr.data.sample import Sample
from ivgr.errors import UserError
from ivgr.evaluation.benchmarks import Benchmark

QUESTIONS = ("question", "text", "query")
ANSWERS = ("answer", "label")
OPTIONS = ("multi-choice options", "options", "choices")
BOXES = ("target_instances", "bbox", "boxes")

_ITEM = re.compile(r"\s*\(?([A-Z])[).:]\s*(.*\S)\s*", re.DOTALL)
_LINE = re.compile(r"^\s*\(?([A-Z])[).:]\s*(\S.*?)\s*$", re.MULTILINE)
_INLINE = re.compile(r"(?<=[\s,])([A-Z]):\s*(.*?)(?=,\s*[A-Z]:|\s*\Z)", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """gold is a letter where there are options; listed: the question itself lists them; groups:
    the values of the columns that scores are split or averaged by; boxes are gold ones in pixels
    of the first image."""

    index: str
    question: str
    gold: str
    options: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    groups: dict[str, str] = field(default_factory=dict)
    boxes: tuple[tuple[float, ...], ...] = ()
    images: tuple[bytes, ...] = ()

    def ask(self, benchmark: Benchmark, openly: bool = False) -> Sample:
        """The sample that a policy is asked: question, options in lines, and what to answer with;
        openly: the question alone."""
        lines = [self.question]
        if self.options and not self.listed:
            lines += [f"{letter}. {text}" for letter, text in self.options.items()]
        lines.append("Answer with the letter of the right option." if self.options else benchmark.answer_form)
        answer = f"{self.gold}. {self.options[self.gold]}" if self.options else self.gold
        question = self.question if openly else "\n".join(lines)
        return Sample(self.index, question, answer, "single", options=self.options, images=self.images)


def read_fields(fields: dict, benchmark: Benchmark, index: str, where: str) -> Row:
    """The row of `fields`, empty ones left out; UserError, beginning with `where`, if question or
    answer is missing or the answer is none of the options."""
    question = _first(fields, QUESTIONS, "question", where)
    answer = _first(fields, ANSWERS, "answer", where)
    answer = str(answer[0] if isinstance(answer, list) and answer else answer).strip()
    options, listed = _read_options(fields), False
    if not options and re.fullmatch(r"\(?[A-Z]\)?\.?", answer):
        options, listed = _options_within(question), True
    if options:
        answer = _gold_letter(answer, options, benchmark.gold_index, where)
    elif benchmark.rule in ("option", "first letter"):
        raise UserError(f"{where}: no options; give columns A, B, … or one of {', '.join(OPTIONS)}")
    boxes = _read_boxes(fields, where)
    return Row(index, str(question).strip(), answer, options, listed, _groups(fields, benchmark), boxes)


def with_images(row: Row, images: tuple[bytes, ...]) -> Row:
    return replace(row, images=images)


def _first(fields: dict, names: tuple[str, ...], what: str, where: str) -> object:
    value = next((fields[name] for name in names if name in fields), None)
    if value is None:
        raise UserError(f"{where}: no {what}; fill the column {' or '.join(names)}")
    return value


def _groups(fields: dict, benchmark: Benchmark) -> dict[str, str]:
    """By the first of a column's names."""
    columns = [*benchmark.categories, *([(benchmark.group,)] if benchmark.group else [])]
    found = {names[0]: next((fields[n] for n in names if n in fields), None) for names in columns}
    return {name: str(value) for name, value in found.items() if value is not None}


def _read_options(fields: dict) -> dict[str, str]:
    """Columns A, B, …; else a list, or its text, or lines that begin with letters."""
    lettered = {letter: str(fields[letter]) for letter in string.ascii_uppercase if letter in fields}
    given = next((fields[name] for name in OPTIONS if fields.get(name)), None)
    if lettered or given is None:
        return lettered
    if isinstance(given, str) and not given.lstrip().startswith("["):
        return dict(_LINE.findall(given))
    items = [str(item) for item in (_literal(given) if isinstance(given, str) else given)]
    named = [_ITEM.fullmatch(item) for item in items]
    if all(named) and [found.group(1) for found in named] == list(string.ascii_uppercase[: len(items)]):
        items = [found.group(2) for found in named]
    return dict(zip(string.ascii_uppercase, items, strict=False))


def _options_within(question: str) -> dict[str, str]:
    """Lines "(A) …", or "A: …, B: …" in a line of their own."""
    lines = dict(_LINE.findall(question))
    if len(lines) > 1:
        return lines
    _, _, tail = question.rpartition("Options:")
    return dict(_INLINE.findall(f" {tail}"))


def _gold_letter(answer: str, options: dict[str, str], by_index: bool, where: str) -> str:
    letters = list(options)
    if by_index and answer.isdecimal() and int(answer) < len(letters):
        return letters[int(answer)]
    bare = answer.strip(" ().")
    if bare in options:
        return bare
    named = [letter for letter, text in options.items() if text == answer]
    if len(named) != 1:
        raise UserError(f"{where}: answer {answer[:60]!r} is none of its options {', '.join(options)}")
    return named[0]


def _read_boxes(fields: dict, where: str) -> tuple[tuple[float, ...], ...]:
    """[[x1, y1, x2, y2], …], or of {"bbox": …}; one box alone is a list of one."""
    given = next((fields[name] for name in BOXES if name in fields), None)
    try:
        items = _literal(given) if isinstance(given, str) else given
        items = [items] if items and isinstance(items[0], int | float) else items or []
        boxes = [item["bbox"] if isinstance(item, dict) else item for item in items]
        return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: boxes {str(given)[:60]!r} are not [[x1, y1, x2, y2], …]") from error


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("not a list") from error
