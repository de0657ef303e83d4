"""The two prompts of a query. Image(s) and question stand before the instruction, so that
both streams share one prefix."""

from collections.abc import Sequence
from dataclasses import dataclass

from ivgr.core.errors import UserError

GROUNDED = "grounded"
TEXTUAL = "textual"
SINGLE = "single"
PAIRED = (GROUNDED, TEXTUAL)
STREAMS = (*PAIRED, SINGLE)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The instruction of each stream, which follows the question."""

    grounded: str = (
        "Think in <think> </think> and give a <box>[x1,y1,x2,y2]</box> for each object you refer to, "
        "then answer in <answer> </answer>."
    )
    """Of the grounded stream."""

    textual: str = "Think in <think> </think> in plain words, then answer in <answer> </answer>."
    """Of the textual stream, and of single queries."""

    def instruction(self, stream: str) -> str:
        return self.grounded if stream == GROUNDED else self.textual

    def messages(self, question: str, images: int, stream: str) -> list[dict]:
        """The chat of one prompt, with `images` image placeholders, for a HF chat template."""
        content = [{"type": "image"}] * images
        content.append({"type": "text", "text": f"{question}\n{self.instruction(stream)}"})
        return [{"role": "user", "content": content}]


def streams_of(kind: str, paired: Sequence[str] = PAIRED) -> tuple[str, ...]:
    """The streams that a query of `kind` ("paired" or "single") is rolled out in; `paired` are
    those of paired ones."""
    return tuple(paired) if kind == "paired" else (SINGLE,)


def check_paired(streams: Sequence[str]) -> tuple[str, ...]:
    """UserError unless `streams` are one or both of those that paired queries have."""
    if not streams or len(set(streams)) < len(streams) or not set(streams) <= set(PAIRED):
        raise UserError(f"data.streams is {list(streams)}, must be one or both of {', '.join(PAIRED)}")
    return tuple(streams)
