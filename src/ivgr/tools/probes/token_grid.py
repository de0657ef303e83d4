"""Boxes on the grid of image tokens.

In: boxes in a query's frame. Out: how much of each token's part of the picture they cover. Only the
first image counts: gold boxes are of that.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from ivgr.core.frame import Frame
from ivgr.core.query import Query
from ivgr.models.registry import find_family


def grid_shape(model: PreTrainedModel, query: Query) -> tuple[int, int]:
    """Rows and columns of the first image's tokens; (0, 0) without an image."""
    if query.image_grid_thw is None:
        return 0, 0
    merge = find_family(model.config.model_type).merge
    _, height, width = query.image_grid_thw[0].tolist()
    return height // merge, width // merge


def image_columns(model: PreTrainedModel, query: Query) -> torch.Tensor:
    """Returns the positions of the first image's tokens in the prefix, row by row of its grid."""
    rows, columns = grid_shape(model, query)
    return (query.prefix == model.config.image_token_id).nonzero()[: rows * columns, 0]


def coverage(boxes: Sequence[Sequence[float]], frame: Frame, shape: tuple[int, int]) -> np.ndarray:
    """The share (rows, columns) of each token's area that lies in any of `boxes`; its mean is the
    share of the picture that they cover together."""
    sides = (shape[1] / frame.width, shape[0] / frame.height) * 2
    scaled = [[c * side for c, side in zip(box, sides, strict=True)] for box in boxes]
    in_tokens = np.array(scaled).reshape(-1, 4)
    ys, y_first = _cuts(in_tokens[:, 1::2], shape[0])
    xs, x_first = _cuts(in_tokens[:, 0::2], shape[1])
    y, x = (ys[1:] + ys[:-1]) / 2, (xs[1:] + xs[:-1]) / 2
    inside = np.zeros((len(y), len(x)), bool)
    for x1, y1, x2, y2 in in_tokens:
        inside |= np.outer((y1 < y) & (y < y2), (x1 < x) & (x < x2))
    area = inside * np.outer(np.diff(ys), np.diff(xs))
    return np.add.reduceat(np.add.reduceat(area, y_first, 0), x_first, 1)


def _cuts(edges: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates at which a cell or a box begins or ends, and which of them begin a cell."""
    cuts = np.unique(np.concatenate([np.arange(cells + 1.0), edges.clip(0, cells).ravel()]))
    return cuts, np.searchsorted(cuts, np.arange(cells))
