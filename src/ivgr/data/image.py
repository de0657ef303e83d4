"""One image of a sample: bytes of any common format and mode become upright 8-bit RGB.

In: encoded bytes, which nobody has checked. Out: a PIL image, or a `RejectedSample`.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ivgr.data.rejection import RejectedSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # MPO is opened as JPEG
MAX_PIXELS = 2 * 89_478_485  # twice what PIL warns of
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
THIRTY_TWO_BITS = ("I", "F")
ORIENTATION = 0x0112


class _TooLarge(Exception):
    pass


class _NoEightBits(Exception):
    pass


def open_image(data: bytes, where: str) -> Image.Image:
    """The first frame of `data` as RGB, upright: CMYK, palette and grey are converted, 16 bits
    scaled to 8, transparency laid on white.

    RejectedSample, its message beginning with `where`: "image: empty", "not an image",
    "truncated", "too large" (more than `MAX_PIXELS`), "32-bit", "broken".
    """
    try:
        return _to_rgb(_turn_upright(_read_header(data)))
    except Exception as error:  # decoders raise anything on bytes made to break them
        raise RejectedSample(
            f"{where} cannot be read ({type(error).__name__.strip('_')}); replace or remove it",
            f"image: {_reason(error, data)}",
        ) from None


def read_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of `data` states; None if `open_image` will refuse it."""
    try:
        return _read_header(data).size
    except Exception:  # as in `open_image`
        return None


def _read_header(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _TooLarge
    return image


def _turn_upright(image: Image.Image) -> Image.Image:
    return image if image.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in SIXTEEN_BITS:
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in THIRTY_TWO_BITS:
        raise _NoEightBits
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception, data: bytes) -> str:
    if not data:
        return "empty"
    if isinstance(error, _TooLarge | Image.DecompressionBombError):
        return "too large"
    if isinstance(error, _NoEightBits):
        return "32-bit"
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    truncated = isinstance(error, EOFError) or "truncated" in str(error).lower()
    return "truncated" if truncated else "broken"
