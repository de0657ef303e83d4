"""What a vision tower reads off the sizes of its images, computed on the host.

On a GPU, transformers' towers compute it from sizes that lie there, and wait for each. But they take
it precomputed, as keyword arguments: see `transformers.vision_utils`. In: a tower and the sizes on the
host. Out: those arguments. The dictionary's integers and boundaries (`cu_…`) belong on the host.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

GridInputs = Callable[[Any, torch.Tensor], dict[str, Any]]


def image_inputs(tower: Any, grid: torch.Tensor) -> dict[str, Any]:
    """Rotary positions of all patches, and the boundaries of the images, of sizes `grid` (images, 3)."""
    boundaries = get_vision_cu_seqlens(grid)
    return {
        "position_ids": get_vision_position_ids(grid, tower.spatial_merge_size),
        "cu_seqlens": boundaries,
        "max_seqlen": longest(boundaries),
    }


def window_inputs(tower: Any, grid: torch.Tensor) -> dict[str, Any]:
    """The same for a tower that also attends in windows: their order and boundaries."""
    order, boundaries = get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return image_inputs(tower, grid) | {
        "window_index": order,
        "cu_window_seqlens": boundaries,
        "max_window_seqlen": longest(boundaries),
    }


def interpolated_inputs(tower: Any, grid: torch.Tensor) -> dict[str, Any]:
    """The same for a tower that interpolates learned positions: which of them, and their weights."""
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=tower.num_grid_per_side,
        mode=tower.interpolation_mode,
        align_corners=tower.interpolation_align_corners,
        spatial_merge_size=tower.spatial_merge_size,
    )
    return image_inputs(tower, grid) | {"interp_indices": indices, "interp_weights": weights}


def longest(boundaries: torch.Tensor) -> int:
    return int(boundaries.diff().max())
