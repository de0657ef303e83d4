"""One row of a benchmark: its columns, under whatever names the field gives them, become a `Row`.

In: a dict of column values (texts of a TSV, values of a parquet), without images. Out: a `Row`; one
that cannot be asked says why.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ivgr.core.sample import Sample
from ivgr.data.answer_options import LETTERS, letter_options
from ivgr.tools.benchmarks.benchmarks import Benchmark
from ivgr.tools.benchmarks.grounding import name_split, write_gold
from ivgr.tools.benchmarks.lists import read_list

QUESTIONS = ("question", "text", "query", "problem", "Question", "prompt")
ANSWERS = ("answer", "label", "response", "solution", "Correct Answer")
OPTIONS = ("multi-choice options", "options", "choices", "Options")
BOXES = ("target_instances", "bbox", "boxes")
FAULT = "\0"  # the column of a row that its file could not give whole: why

_LETTERED = re.compile(r"\(?([A-Za-z])[).:](.*)", re.DOTALL)
_INLINE = re.compile(r"(?<=[\s,])([A-Z]):")
_COMMA = re.compile(r",\s*(?=[A-Z]:)")
_LETTER = re.compile(r"\(?[A-Za-z]\)?\.?")


@dataclass(frozen=True)
class Row:
    """gold is a letter where there are options; listed: the question itself lists them; groups:
    the values of the columns that scores are split or averaged by; boxes are gold ones in pixels
    of the first image; kind: of what an answer must be ("integer", "float", …), "" where any will do;
    fault: why the row cannot be asked, "" if it can."""

    index: str
    question: str
    gold: str
    options: dict[str, str] = field(default_factory=dict)
    listed: bool = False
    groups: dict[str, str] = field(default_factory=dict)
    boxes: tuple[tuple[float, ...], ...] = ()
    images: tuple[bytes, ...] = ()
    kind: str = ""
    fault: str = ""

    def ask(self, benchmark: Benchmark, openly: bool = False) -> Sample:
        """The sample that a policy is asked: question, options in lines, and what to answer with;
        openly: the question alone."""
        lines = [self.question]
        if self.options and not self.listed:
            lines += [f"{letter}. {text}" for letter, text in self.options.items()]
        lines.append("Answer with the letter of the right option." if self.options else benchmark.answer_form)
        answer = f"{self.gold}. {self.options[self.gold]}" if self.options else self.gold
        question = self.question if openly else "\n".join(lines)
        options = {} if openly else self.options
        return Sample(self.index, question, answer, "single", options=options, images=self.images)


class Fault(Exception):
    """The reason why a row cannot be asked."""


def read_fields(fields: dict, benchmark: Benchmark, index: str) -> Row:
    """The row of `fields`, empty ones left out. It has a fault where question or answer is missing or
    no text, or the answer is none of the options."""
    groups = read_groups(fields, benchmark)
    try:
        return _read(fields, benchmark, index, groups)
    except Fault as fault:
        return Row(index, "", "", groups=groups, fault=str(fault))


def _read(fields: dict, benchmark: Benchmark, index: str, groups: dict[str, str]) -> Row:
    if FAULT in fields:
        raise Fault(fields[FAULT])
    question = _text(fields, QUESTIONS, "question").replace("<image>", "").strip()
    boxes = _read_boxes(fields)
    if benchmark.rule == "box":
        return Row(index, question, write_gold(fields, Fault), groups=groups, boxes=boxes)
    answer = _text(fields, ANSWERS, "answer").strip()
    options, listed = _read_options(fields), False
    if not options and _LETTER.fullmatch(answer):
        options, listed = _options_within(question), True
    if options:
        answer = str(fields.get("answer_option", answer)).strip()
        answer = _gold_letter(answer, options, benchmark.gold_index)
    elif benchmark.rule in ("option", "first letter"):
        raise Fault(f"no options; give columns A, B, … or one of {', '.join(OPTIONS)}")
    kind = str(fields.get("answer_type", ""))
    return Row(index, question, answer, options, listed, groups, boxes, kind=kind)


def with_images(row: Row, images: tuple[bytes, ...], fault: str = "") -> Row:
    return replace(row, images=images, fault=row.fault or fault)


def _text(fields: dict, names: tuple[str, ...], what: str) -> str:
    """The first of these columns, as text: of a list its first item, but for a list in a text."""
    value = next((fields[name] for name in names if name in fields), None)
    if isinstance(value, list) and value:
        value = value[0]
    if value is None:
        raise Fault(f"no {what}; fill the column {' or '.join(names)}")
    if not isinstance(value, str | int | float):
        raise Fault(f"its {what} is no text but {type(value).__name__}")
    return str(value)


def read_groups(fields: dict, benchmark: Benchmark) -> dict[str, str]:
    """Reads a column by the first of its names that is there."""
    columns = [*benchmark.categories, *([(benchmark.group,)] if benchmark.group else [])]
    found = {names[0]: next((fields[n] for n in names if n in fields), None) for names in columns}
    if benchmark.rule == "box" and found["split"] is None and isinstance(fields.get("category"), str):
        found["split"] = name_split(fields["category"])
    return {name: str(value) for name, value in found.items() if value is not None}


def _read_options(fields: dict) -> dict[str, str]:
    """Columns A, B, …; else a list, or its text, or lines that begin with letters."""
    lettered = {letter: str(fields[letter]) for letter in LETTERS if letter in fields}
    given = next((fields[name] for name in OPTIONS if fields.get(name)), None)
    if lettered or given is None:
        return lettered
    if isinstance(given, str) and not given.lstrip().startswith("["):
        return _lettered_lines(given) or _lettered_parts(given)
    try:
        items = [str(item) for item in (read_list(given) if isinstance(given, str) else list(given))]
    except (TypeError, ValueError) as error:
        raise Fault(f"its options {str(given)[:60]!r} are no list") from error
    return letter_options(items[: len(LETTERS)])


def _lettered_lines(text: str) -> dict[str, str]:
    """Lines that begin with "A.", "(B)", …; of two with one letter the last."""
    found = (_LETTERED.fullmatch(line.strip()) for line in text.splitlines())
    named = [(match.group(1), match.group(2).strip()) for match in found if match]
    return {letter: option for letter, option in named if option and letter.isupper()}


def _lettered_parts(text: str) -> dict[str, str]:
    """ "(a) open (b) closed", as MMVP writes them in one line."""
    parts = re.split(r"\(([a-z])\)", text)[1:]
    return {letter.upper(): part.strip() for letter, part in zip(parts[::2], parts[1::2], strict=True)}


def _options_within(question: str) -> dict[str, str]:
    """Lines "(A) …", or "A: …, B: …" in a line of their own."""
    lines = _lettered_lines(question)
    if len(lines) > 1:
        return lines
    _, _, tail = f" {question}".rpartition("Options:")
    first = _INLINE.search(f" {tail}")
    parts = _COMMA.split(f" {tail}"[first.start() :]) if first else ()
    return {part[0]: part[2:].strip() for part in parts}


def _gold_letter(answer: str, options: dict[str, str], by_index: bool) -> str:
    letters = list(options)
    if by_index and answer.isdecimal() and len(answer) < 3 and int(answer) < len(letters):
        return letters[int(answer)]
    bare = answer.strip(" ().")
    if re.fullmatch(r"\([a-z]\)", answer):
        bare = bare.upper()
    if bare in options:
        return bare
    named = [letter for letter, text in options.items() if text == answer]
    if len(named) > 1:
        raise Fault(f"answer {answer[:60]!r} is the text of several of its options {', '.join(named)}")
    if not named:
        raise Fault(f"answer {answer[:60]!r} is none of its options {', '.join(options)}")
    return named[0]


def _read_boxes(fields: dict) -> tuple[tuple[float, ...], ...]:
    """[[x1, y1, x2, y2], …], or of {"bbox": …}; one box alone is a list of one."""
    given = next((fields[name] for name in BOXES if name in fields), None)
    try:
        items = read_list(given) if isinstance(given, str) else given
        items = [items] if _is_box(items) else items or []
        boxes = [item["bbox"] if isinstance(item, dict) else item for item in items]
        return tuple((float(x1), float(y1), float(x2), float(y2)) for x1, y1, x2, y2 in boxes)  # pyright: ignore[reportGeneralTypeIssues]
    except (ArithmeticError, ValueError, TypeError, KeyError) as error:
        raise Fault(f"boxes {str(given)[:60]!r} are not [[x1, y1, x2, y2], …]") from error


def _is_box(items: object) -> bool:
    return (
        isinstance(items, Iterable) and all(isinstance(item, int | float) for item in items) and bool(items)
    )
