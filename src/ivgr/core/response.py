"""The output form: one think block, then one answer block (R_format of arXiv 2605.31096)."""

import re

_TAGS = re.compile(r"</?(?:think|answer)>")
_BLOCKS = re.compile(r"\s*<think>(.*)</think>\s*<answer>(.*)</answer>\s*", re.DOTALL)


def format_reward(text: str) -> float:
    """1.0 if `text` is exactly one think block and then exactly one answer block, with
    nothing but white space around them; else 0.0."""
    tags = _TAGS.findall(text)
    ordered = tags == ["<think>", "</think>", "<answer>", "</answer>"]
    return float(ordered and _BLOCKS.fullmatch(text) is not None)


def read_think(text: str) -> str:
    """The text of the first complete think block, "" if there is none."""
    return _first_block("think", text)


def read_answer(text: str) -> str:
    """The text of the first complete answer block behind the last `</think>`, stripped, "" if there
    is none: reasoning may quote the tags."""
    return _first_block("answer", text.rpartition("</think>")[2]).strip()


def _first_block(tag: str, text: str) -> str:
    _, opened, rest = text.partition(f"<{tag}>")
    inner, closed, _ = rest.partition(f"</{tag}>")
    return inner if opened and closed else ""
