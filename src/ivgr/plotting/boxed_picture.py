"""A picture for a logger: an image with gold and predicted boxes that show on any ground, and a caption.

In: an image, boxes in its pixels, lines of text. Out: an image WIDTH pixels wide.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from ivgr.core.printable import printable
from ivgr.plotting.pictures import place_box, shrink

WIDTH, TALLEST = 640, 960
TEXT, MARGIN, LINES = 22, 10, 3  # of the caption: pixels, and lines that one of its sentences may take


@dataclass(frozen=True)
class Outline:
    """A line with an edge on both sides; where one of the two tones is lost on a ground, the other shows.

    line and edge are their widths in pixels.
    """

    color: str
    edge_color: str
    line: int
    edge: int

    def draw(self, pen: ImageDraw.ImageDraw, box: tuple[float, float, float, float]) -> None:
        """Along the inside of `box`."""
        pen.rectangle(box, None, self.edge_color, self.line + 2 * self.edge)
        x1, y1, x2, y2 = box
        inner = (x1 + self.edge, y1 + self.edge, x2 - self.edge, y2 - self.edge)
        if inner[0] <= inner[2] and inner[1] <= inner[3]:
            pen.rectangle(inner, None, self.color, self.line)


# Of two boxes in the same place the wider gold one still shows around the predicted one.
GOLD = Outline("#ffd000", "#000000", 8, 3)
PREDICTED = Outline("#6a00a8", "#ffffff", 4, 2)


def boxed_picture(
    image: Image.Image,
    gold: Sequence[Sequence[float]],
    predicted: Sequence[Sequence[float]],
    caption: Sequence[str],
) -> Image.Image:
    """`image` as large as WIDTH × TALLEST has room for, its boxes, and the caption's sentences below it."""
    width, height = image.size
    side = max(width, height) * min(WIDTH / width, TALLEST / height)
    shown = shrink(image.convert("RGB"), side)
    pen = ImageDraw.Draw(shown)
    for boxes, outline in ((gold, GOLD), (predicted, PREDICTED)):
        for box in boxes:
            if (place := place_box(box, image.size, shown.size)) is not None:
                outline.draw(pen, place)
    font = ImageFont.load_default(TEXT)
    lines = [line for sentence in caption for line in _wrap(sentence, font)]
    text_height = len(lines) * (TEXT + 6) + 2 * MARGIN
    whole = Image.new("RGB", (WIDTH, shown.height + text_height), "white")
    whole.paste(shown, ((WIDTH - shown.width) // 2, 0))
    ImageDraw.Draw(whole).multiline_text(
        (MARGIN, shown.height + MARGIN), "\n".join(lines), "black", font, spacing=6
    )
    return whole


def _wrap(sentence: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """At most LINES lines."""
    letters = "the quick brown fox jumps over the lazy dog "
    characters = int((WIDTH - 2 * MARGIN) / font.getlength(letters) * len(letters))
    return textwrap.wrap(printable(sentence), characters, max_lines=LINES, placeholder=" …")
