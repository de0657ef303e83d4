"""`ivgr inspect`: tables in the terminal and a contact sheet."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.settings import PositiveInt, checked
from ivgr.data.shards import find_shards
from ivgr.plotting.pictures import WRITERS, write_sheet
from ivgr.tools.packing_data.contact_sheet import make_tile
from ivgr.tools.packing_data.survey import TOKENS, Histogram, survey_shards

if TYPE_CHECKING:  # it loads torchvision
    from ivgr.data.encode import QueryEncoder

ENCODED = 256


@checked("inspect: --")
def inspect(
    shards: str, processor: str | None = None, out: Path = Path("sheet.html"), count: PositiveInt = 24
) -> None:
    """Count what shards hold, and draw some of it: the way to see a frame error before training.

    Args:
        shards: A shard, a folder, a glob or a brace range.
        processor: "tiny" or a HF directory or id. Boxes are then drawn in that model's frame on
            the image as its processor resizes it, and prompt lengths are counted.
        out: Contact sheet, .html (needs no other file) or .png.
        count: Samples on the sheet, drawn at random.
    """
    if out.suffix not in WRITERS:
        raise UserError(f"inspect: --out is {out}, must end in {' or '.join(WRITERS)}")
    encoder = _load_encoder(processor) if processor else None
    survey = survey_shards(find_shards(shards), max(count, ENCODED if encoder else 0))
    if not survey.shards:
        raise UserError(f"inspect: the shards at {shards!r} hold no sample")
    console = Console()
    console.print(survey.tables())
    if encoder:
        console.print(_prompt_lengths(survey.chosen, encoder).table())
    write_sheet([make_tile(sample, encoder) for sample in survey.chosen[:count]], out)
    print(f"{min(count, len(survey.chosen))} samples drawn on {out}")


def _load_encoder(path: str) -> "QueryEncoder":
    """Returns the encoder that training uses, but for prompts of any length."""
    # Libraries of models take seconds to load, and without a processor nothing here needs them.
    from ivgr.data.encode import QueryEncoder
    from ivgr.models.model_directory import read_config
    from ivgr.models.pretrained import TINY
    from ivgr.models.processor import read_processor

    place, setting = TINY if path == "tiny" else path, "inspect --processor"
    config = read_config(place, setting)
    return QueryEncoder.of(config, read_processor(place, config, setting), Prompts(), sys.maxsize)


def _prompt_lengths(samples: list, encoder: "QueryEncoder") -> Histogram:
    """Tokens of each sample's longest prompt."""
    lengths = Histogram(f"tokens of the prompt, {len(samples)} samples", TOKENS)
    for sample in samples:
        query = encoder(sample)
        lengths.add(len(query.prefix) + max(len(group.instruction) for group in query.groups))
    return lengths
