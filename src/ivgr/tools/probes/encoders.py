"""A baseline for the read-out: the same boxes from a frozen image encoder of timm.

In: pictures and the nouns asked for. Out: features (n, F), one row per object. A linear read-out of
a picture's features beside the noun's words could only add the two; to ask the picture *for* the
noun it needs their products. So an object's features are its words, the picture's map, and every
product of the two; the map is averaged to CELLS x CELLS and reduced to its COMPONENTS main directions
over all pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from ivgr.core.errors import UserError
from ivgr.core.seeding import derive_seed
from ivgr.tools.probes.annotated_response import AnnotatedResponse
from ivgr.tools.probes.localization import Named

CELLS, COMPONENTS, BATCH = 4, 64, 32


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder. name: any of timm's that gives a feature map; pretrained: with its published
    weights (fetched by timm), else with random ones drawn by `seed`."""

    name: str
    pretrained: bool = True
    seed: int = 0

    def load(self) -> torch.nn.Module:
        """UserError if timm does not know the name or the weights cannot be had. The global random
        stream stays where it is."""
        if not timm.is_model(self.name):
            raise UserError(f"probe: timm has no model {self.name!r}; see timm.list_models()")
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed("encoder", self.seed))
            try:
                model = timm.create_model(
                    self.name, pretrained=self.pretrained, features_only=True, out_indices=[-1]
                )
            except (RuntimeError, OSError, AttributeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"probe: timm's {self.name!r} gives no feature map ({reason})") from error
        return model.eval().requires_grad_(False)


def encode_named(encoder: Encoder, readings: list[AnnotatedResponse], named: Named) -> np.ndarray:
    """Features (n, F) of the named objects, fp64; each picture is encoded once, whole (squeezed into
    the encoder's shape, so that a place in it is a place in the map)."""
    wanted, picture = np.unique(named.images, return_inverse=True)
    pictures = [readings[index].query.sample.open_images()[0] for index in wanted]
    maps = _main_directions(_encode(encoder.load(), pictures))[picture]
    words = _words(named.labels)
    products = words[:, :, None] * maps[:, None, :]
    return np.concatenate([words, maps, products.reshape(len(words), -1)], 1)


@torch.no_grad()
def _encode(model: Any, pictures: Sequence[Image.Image]) -> np.ndarray:
    """(pictures, CELLS · CELLS · C) fp64."""
    config = resolve_model_data_config(model)
    prepare: Any = create_transform(**config | {"crop_pct": 1.0, "crop_mode": "squash"}, is_training=False)
    channels, found = model.feature_info.channels()[-1], []
    for start in range(0, len(pictures), BATCH):
        (grid,) = model(torch.stack([prepare(picture) for picture in pictures[start : start + BATCH]]))
        if grid.shape[1] != channels:  # some keep channels last
            grid = grid.movedim(-1, 1)
        found.append(torch.nn.functional.adaptive_avg_pool2d(grid, CELLS).flatten(1).double())
    return torch.cat(found).numpy()


def _main_directions(maps: np.ndarray) -> np.ndarray:
    """Coordinates (n, at most COMPONENTS) of centred maps in the directions they vary most in."""
    u, s, _ = np.linalg.svd(maps - maps.mean(0), full_matrices=False)
    return (u * s)[:, :COMPONENTS]


def _words(labels: Sequence[str]) -> np.ndarray:
    """(n, words) 1 where a label has the word."""
    known = sorted({word for label in labels for word in label.lower().split()})
    return np.array([[float(word in label.lower().split()) for word in known] for label in labels])
