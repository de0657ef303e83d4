"""The bytes of an image, and the pixel budget.

In: a reference (a path under the image folder, or the bytes themselves). Out: bytes that are
JPEG, PNG or WebP and within the budget, and by how much the image was shrunk.
"""

import base64
import binascii
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ivgr.core.images import open_image, read_format
from ivgr.core.printable import in_line
from ivgr.core.regular_files import read_file
from ivgr.core.rejection import RejectedSample
from ivgr.tools.packing_data.convert import Rejected

MOST_PIXELS = 3_211_264
STEEPEST = 200
KEPT = ("JPEG", "PNG", "WEBP")
# How base64 of a JPEG, PNG, WebP, GIF, little- and big-endian TIFF begins; BMP's "Qk" says too little.
BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "SUkqA", "TU0AK")


@dataclass(frozen=True)
class Fitted:
    """size is that of the original, upright; scale is packed / original, (x, y); change is ""
    if the bytes are untouched, else what was done."""

    data: bytes
    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    change: str = ""


def fetch_image(reference: str | bytes, folder: Path) -> bytes:
    """The bytes that `reference` is, writes as base64 or names; Rejected if the path is missing, leads
    out of `folder` or is no file."""
    if isinstance(reference, bytes):
        return reference
    if (written := _decode_base64(reference)) is not None:
        return written
    root = os.path.abspath(folder)
    path, named = os.path.abspath(os.path.join(root, reference)), in_line(reference, 80)
    if os.path.commonpath((root, path)) != root:
        raise Rejected(f"image path: {named} leads out of the image folder")
    try:
        return read_file(Path(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Rejected(f"missing image: {named} ({reason})") from error


def _decode_base64(text: str) -> bytes | None:
    """The image that `text` is in base64, as a data URL or alone; None if it is no such."""
    _head, comma, body = text.partition(",") if text[:5] == "data:" else ("", "", text)
    if not comma and not text.startswith(BASE64):
        return None
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def fit_image(data: bytes, most_pixels: int = MOST_PIXELS) -> Fitted:
    """`data` untouched if it is a JPEG, PNG or WebP of at most `most_pixels`; else shrunk to as
    many (upright) or, from another format, rewritten as PNG. A smaller image than the budget's
    lower end stays as it is: the processor enlarges it. What is written anew shows what training
    shows of `data` (`ivgr.core.images`). Rejected if that cannot be decoded."""
    try:
        picture = open_image(data, "image")
    except RejectedSample as error:
        raise Rejected(f"broken image: {error.reason.removeprefix('image: ')}") from error
    return _fit(data, read_format(data), picture, most_pixels)


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
    picture = image.resize(small, Image.Resampling.LANCZOS)
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
        image.save(buffer, "PNG")
    return buffer.getvalue()
