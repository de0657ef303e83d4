"""Where an image's bytes come from, and the pixel budget.

In: a reference (a path under the image folder, or the bytes themselves). Out: bytes that are
JPEG, PNG or WebP and within the budget, and by how much the image was shrunk.
"""

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ivgr.pack.convert import Rejected

MOST_PIXELS = 3_211_264
STEEPEST = 200
KEPT = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True)
class Fitted:
    """size is that of the original, upright; scale is packed / original, (x, y); change is ""
    if the bytes are untouched, else what was done."""

    data: bytes
    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    change: str = ""


def fetch_image(reference: str | bytes, folder: Path) -> bytes:
    """The bytes that `reference` names; Rejected if the path is missing or leads out of `folder`."""
    if isinstance(reference, bytes):
        return reference
    root = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(root, reference))
    if os.path.commonpath((root, path)) != root:
        raise Rejected(f"image path: {reference} leads out of the image folder")
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise Rejected(f"missing image: {reference} ({type(error).__name__})") from error


def fit_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Fitted:
    """`data` untouched if it is a JPEG, PNG or WebP of at most `most_pixels`; else shrunk to as
    many (upright) or, from another format, rewritten as PNG. A smaller image than the budget's
    lower end stays as it is: the processor enlarges it. Rejected if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = image.format
            upright = ImageOps.exif_transpose(image)
            upright.load()
            return _fit(data, kind, upright, most_pixels)
    except Rejected:
        raise
    except Exception as error:
        # Decoders of broken files raise whatever they like.
        raise Rejected(f"broken image: {type(error).__name__}: {str(error)[:80]}") from error


def _fit(data: bytes, kind: str, image: Image.Image, most_pixels: int) -> Fitted:
    width, height = image.size
    if max(width, height) > STEEPEST * min(width, height):
        raise Rejected(f"aspect ratio: {width} x {height} is steeper than {STEEPEST} : 1")
    if width * height <= most_pixels:
        if kind in KEPT:
            return Fitted(data, image.size)
        return Fitted(_encode(image, "PNG"), image.size, change=f"{kind} rewritten as PNG")
    small = shrunk_size(width, height, most_pixels)
    scale = (small[0] / width, small[1] / height)
    picture = image.convert("RGB").resize(small, Image.Resampling.LANCZOS)
    return Fitted(_encode(picture, kind), image.size, scale, "image shrunk to the pixel budget")


def shrunk_size(width: int, height: int, most_pixels: int) -> tuple[int, int]:
    """The largest size of (nearly) the same shape with at most `most_pixels`."""
    factor = math.sqrt(most_pixels / (width * height))
    small = max(1, int(width * factor))
    low = max(1, min(int(height * factor), most_pixels // small))
    return min(small, most_pixels // low), low


def _encode(image: Image.Image, kind: str) -> bytes:
    """JPEG stays JPEG; all else becomes PNG, which loses nothing."""
    buffer = io.BytesIO()
    if kind == "JPEG":
        image.save(buffer, "JPEG", quality=95)
    else:
        image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
