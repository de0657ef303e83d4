"""The ways in which a policy can be asked."""

from typing import Literal, get_args

from ivgr.core.prompts import GROUNDED, TEXTUAL

Mode = Literal["text", "grounded", "tool"]
MODES: tuple[Mode, ...] = get_args(Mode)
FIRST = {"text": TEXTUAL, "grounded": GROUNDED, "tool": GROUNDED}
LAST = {"text": TEXTUAL, "grounded": GROUNDED, "tool": TEXTUAL}
