"""One image of a sample: bytes of any common format and mode become upright 8-bit RGB.

In: encoded bytes, which nobody has checked. Out: a PIL image, or a `RejectedSample`.
"""

import io
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ivgr.core.rejection import RejectedSample

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # MPO is opened as JPEG
# Of one image, or of a sample's together. An image processor holds it three times over, as RGB.
MAX_PIXELS = 2**27
STRIP = 2**22  # pixels
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
THIRTY_TWO_BITS = ("I", "F")


class _TooLarge(Exception):
    pass


class _NoEightBits(Exception):
    pass


def open_images(images: Sequence[bytes], where: str) -> list[Image.Image]:
    """The images of one sample; RejectedSample as of `open_image`, and "image: too large" if they
    have more than `MAX_PIXELS` together, by their headers."""
    check_pixels(images, where)
    return [open_image(data, f"{where}: image {index}") for index, data in enumerate(images)]


def check_pixels(images: Sequence[bytes], where: str) -> None:
    """RejectedSample ("image: too large") if `images` have more than `MAX_PIXELS` together."""
    pixels = sum(math.prod(read_size(data) or (0,)) for data in images) if len(images) > 1 else 0
    if pixels > MAX_PIXELS:
        raise RejectedSample(
            f"{where}: its {len(images)} images have {pixels} pixels together, more than {MAX_PIXELS}; "
            "shrink them or leave some out",
            "image: too large",
        )


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


def read_format(data: bytes) -> str:
    """One of `FORMATS`, or MPO; `data` must be such that `open_image` takes it."""
    return _read_header(data).format or ""


def _read_header(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise _TooLarge
    return image


def _turn_upright(image: Image.Image) -> Image.Image:
    return image if image.getexif().get(ExifTags.Base.Orientation, 1) == 1 else ImageOps.exif_transpose(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in THIRTY_TWO_BITS:
        raise _NoEightBits
    image.load()
    if image.mode in SIXTEEN_BITS:
        return _by_strips(image, _scale_to_eight_bits)
    if image.has_transparency_data:
        return _by_strips(image, _lay_on_white)
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`image` converted to RGB a strip at a time, since a conversion needs several times its bytes."""
    whole, rows = Image.new("RGB", image.size), max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        whole.paste(convert(strip), (0, top))
    return whole


def _scale_to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")


def _lay_on_white(image: Image.Image) -> Image.Image:
    opaque = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")


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
