"""Training checkpoints, read in one place.

In: a file that `ivgr fit` has written, or the folder of a sharded run. Out: what it holds, of the
shape that is asked for. Nothing in it is executed, and whatever is wrong with it is one line.
"""

import types
import zipfile
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import torch
from packaging.version import InvalidVersion, Version

from ivgr.core.errors import UserError
from ivgr.core.finite import find_not_finite

META = "meta.pt"
MEND = "use another checkpoint of the run, or start afresh"

# The shape of every checkpoint; the module of a kind of run adds its own.
SHAPE = {"pytorch-lightning_version": str, "epoch": int, "global_step": int, "ivgr": dict}
WEIGHTS = {str: torch.Tensor}


def read_checkpoint(path: Path | str, whole: bool = False) -> dict[str, Any]:
    """What a checkpoint holds; of a sharded one, all but the weights and moments.

    Args:
        path: The file, or the folder of a sharded run.
        whole: Reads tensors into memory and compares them with their checksums. Otherwise they are
            mapped, so that looking at the rest of a large file costs nothing; the file must not
            be written to while they are used.

    Raises:
        UserError: There is none, it is of another kind or damaged, or `ivgr fit` has not made it.
    """
    path = Path(path)
    find_checkpoint(path)
    file = path / META if path.is_dir() else path
    try:
        _check_archive(file, path, whole)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=not whole)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever bytes that are no checkpoint bring a reader to
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"checkpoint {path}: it cannot be read weights-only ({type(error).__name__}: {reason}); {MEND}"
        ) from error
    if not isinstance(state, dict) or "ivgr" not in state:
        raise UserError(f"checkpoint {path}: it was not made by `ivgr fit`; {MEND}")
    refuse_misshapen(state, SHAPE, path)
    _check_version(state["pytorch-lightning_version"], path)
    return state


def find_checkpoint(path: Path, sharded: bool | None = None) -> None:
    """UserError unless `path` can be a checkpoint; with `sharded`, unless it is, or is not, one of
    weights split over ranks."""
    if path.is_dir() and not (path / META).is_file():
        model = (path / "config.json").is_file()
        mend = "begin from a model directory with --model.policy" if model else "name a file in it"
        raise UserError(f"checkpoint {path}: it is a folder without {META}, no checkpoint; {mend}")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"checkpoint {path}: no checkpoint is there; name one, or start afresh without it")
    if sharded is False and path.is_dir():
        raise UserError(f"checkpoint {path}: it is sharded; add --trainer.strategy fsdp2")
    if sharded and not path.is_dir():
        raise UserError(f"checkpoint {path}: it is not sharded; resume with the strategy it was made with")


def _check_archive(file: Path, path: Path, whole: bool) -> None:
    """UserError unless `file` is a zip archive as torch.save writes it, none of whose parts was
    compressed, and each agrees with its checksum; without `whole`, only of those that are no
    tensor's."""
    with file.open("rb") as opened:
        head = opened.read(9)
    if head[:4] != b"PK\x03\x04":
        tensors = head[8:9] == b"{"
        kind = "a safetensors file, weights alone" if tensors else "no archive of torch.save"
        mend = "begin from a model directory with --model.policy" if tensors else MEND
        raise UserError(f"checkpoint {path}: it cannot be read weights-only, since it is {kind}; {mend}")
    try:
        with zipfile.ZipFile(file) as archive:
            for part in archive.infolist():
                if part.compress_type != zipfile.ZIP_STORED:
                    raise UserError(f"checkpoint {path}: {part.filename} in it is compressed; {MEND}")
                if whole or "/data/" not in part.filename:
                    _read_through(archive, part)
    except zipfile.BadZipFile as error:
        raise UserError(f"checkpoint {path}: it is truncated or damaged ({error}); {MEND}") from error


def _read_through(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> None:
    """BadZipFile if the checksum is not that of the bytes."""
    with archive.open(part) as opened:
        while opened.read(1 << 20):
            pass


def _check_version(version: str, path: Path) -> None:
    """Lightning rewrites what older versions have written, by this number."""
    try:
        known = Version(version).major >= 2
    except InvalidVersion:
        known = False
    if not known:
        raise UserError(f"checkpoint {path}: no run has pytorch-lightning_version {version!r}; {MEND}")


def refuse_misshapen(value: object, shape: object, path: Path | str) -> None:
    """UserError that names what of a checkpoint's content `value` is not of `shape`, see `misfit`."""
    if (odd := misfit(value, shape)) is not None:
        raise UserError(f"checkpoint {path}: {odd}; {MEND}")


def refuse_not_finite(tensors: dict[str, torch.Tensor], path: Path | str, whose: str = "policy") -> None:
    if (name := find_not_finite(tensors.items())) is not None:
        raise UserError(
            f"checkpoint {path}: numbers of its {whose} are not finite (first in {name}); use an earlier one"
        )


class Either(tuple):
    """Shapes of which one is enough."""


PLAIN = object()


def misfit(value: object, shape: object, name: str = "") -> str | None:
    """The first part of `value` that is not of `shape`, in words.

    A shape is a type (an int is a count: at least 0 and no bool; a float any other number), a union
    of types, a Literal, {key: shape} for a mapping that has these keys at least ("key?" may be
    missing), {str: shape} for one whose values are all alike, [shape] for a sequence of such,
    (shape, …) for one of as many as there are, Either of several, or PLAIN for any nest of plain data.
    """
    if shape is PLAIN:
        return _misfit_of_plain(value, name)
    if isinstance(shape, Either):
        odd = [misfit(value, one, name) for one in shape]
        return None if None in odd else odd[-1]
    if isinstance(shape, dict):
        return _misfit_of_mapping(value, shape, name)
    if isinstance(shape, list | tuple):
        return _misfit_of_sequence(value, shape, name)
    if get_origin(shape) is Literal:
        known = any(type(value) is type(one) and value == one for one in get_args(shape))
        return None if known else f"{name} is {_say(value)}, must be {_list(shape)}"
    kinds = get_args(shape) if get_origin(shape) in (Union, types.UnionType) else (shape,)
    if any(_is(value, kind) for kind in kinds):
        return None
    wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
    return f"{name} is {_say(value)}, must be {wanted}"


def _misfit_of_plain(value: object, name: str) -> str | None:
    if isinstance(value, dict):
        return _misfit_of_mapping(value, {str: PLAIN}, name)
    if isinstance(value, list | tuple):
        return _misfit_of_sequence(value, [PLAIN], name)
    plain = isinstance(value, str | int | float | None)
    return None if plain else f"{name} is {_say(value)}, must be plain data"


def _misfit_of_mapping(value: object, shape: dict, name: str) -> str | None:
    if not isinstance(value, dict):
        return f"{name} is {_say(value)}, must be a mapping"
    if str in shape:
        odd = next((key for key in value if not isinstance(key, str)), None)
        if odd is not None:
            return f"{name} has the key {_say(odd)}, must be a name"
        shape = dict.fromkeys(value, shape[str])
    for key, inner in shape.items():
        optional, key = isinstance(key, str) and key.endswith("?"), str(key).removesuffix("?")
        place = f"{name}.{key}".removeprefix(".")
        if key not in value:
            if optional:
                continue
            return f"{place} is missing"
        if (odd := misfit(value[key], inner, place)) is not None:
            return odd
    return None


def _misfit_of_sequence(value: object, shape: list | tuple, name: str) -> str | None:
    if not isinstance(value, list | tuple):
        return f"{name} is {_say(value)}, must be a list"
    if isinstance(shape, list):
        shape = shape * len(value)
    if len(value) != len(shape):
        return f"{name} has {len(value)} parts, must have {len(shape)}"
    parts = enumerate(zip(value, shape, strict=True))
    return next((odd for i, pair in parts if (odd := misfit(*pair, f"{name}[{i}]")) is not None), None)


def _is(value: object, kind: Any) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is torch.Tensor:
        plain = isinstance(value, torch.Tensor) and value.device.type == "cpu"
        return plain and value.layout == torch.strided
    return isinstance(value, kind)


def _list(shape: object) -> str:
    return " or ".join("null" if one is None else str(one) for one in get_args(shape))


def _say(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of {value.dtype} {tuple(value.shape)}"
    return repr(value)[:40] if isinstance(value, str | int | float | bool | None) else type(value).__name__
