"""Attention in a vision tower, one call for all images or windows of one length.

transformers' own path over `scaled_dot_product_attention` calls it once per image, and in Qwen2.5-VL once
per window: 7,172 calls for an image of 3.2 megapixels. In: a layer's queries, keys and values with the
boundaries. Out: its attention output. Nothing of the model is patched: see
https://huggingface.co/docs/transformers/attention_interface.
"""

import copy
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils.generic import is_flash_attention_requested

from ivgr.core.transfer import send
from ivgr.models.registry import find_family
from ivgr.models.vision_grid import GridInputs

# A layer hands over boundaries, instead of splitting by them, to an implementation with "flash" in its name.
NAME = "flash_windows"
REPLACED = "sdpa"


def use_window_attention(model: PreTrainedModel) -> None:
    """Lets the vision tower, if it attends by torch's attention, attend by windows, and computes on the host
    what it reads off the sizes of its images."""
    family = find_family(model.config.model_type)
    tower: Any = family.vision_tower(model)
    if family.grid_inputs is None or tower.config._attn_implementation == NAME:
        return
    if tower.config._attn_implementation == REPLACED:
        AttentionInterface.register(NAME, attend)
        _own_config(tower)._attn_implementation = NAME
    tower.register_forward_pre_hook(partial(_add_inputs, family.grid_inputs), with_kwargs=True)


def _own_config(tower: Any) -> Any:
    """Gives the tower and its layers a configuration of their own: whoever builds another model from the
    whole model's, in which it would stand, would look for a package of our name."""
    shared, own = tower.config, copy.copy(tower.config)
    for module in tower.modules():
        if getattr(module, "config", None) is shared:
            module.config = own
    return own


def _add_inputs(
    grid_inputs: GridInputs, tower: Any, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    """Adds to the arguments of a tower's pass what follows from its `grid_thw`. Boundaries stay on the host,
    where `attend` reads them; only another flash attention wants them on the device."""
    pixels, *rest = args or (kwargs["hidden_states"],)
    grid = rest[0] if rest else kwargs["grid_thw"]
    on_host = not is_flash_attention_requested(tower.config) or tower.config._attn_implementation == NAME
    inputs = {
        name: value
        if isinstance(value, int) or (on_host and name.startswith("cu_"))
        else send(value, pixels.device)
        for name, value in grid_inputs(tower, grid.cpu()).items()
    }
    return args, inputs | kwargs


class Runs(NamedTuple):
    """Neighbouring windows of one length. patches: of each run; members: by length, the runs of that
    length."""

    patches: list[int]
    members: dict[int, list[int]]


@lru_cache(maxsize=16)
def find_runs(boundaries: tuple[int, ...]) -> Runs:
    """The runs between `boundaries`, in order."""
    lengths = (after - before for before, after in pairwise(boundaries))
    runs = Runs([], {})
    for length, windows in groupby(length for length in lengths if length):
        runs.members.setdefault(length, []).append(len(runs.patches))
        runs.patches.append(length * sum(1 for _ in windows))
    return runs


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function: (1, heads, patches, size) tensors, and boundaries (windows + 1,), give
    (1, patches, heads, size)."""
    runs = find_runs(tuple(cu_seq_lens_q.tolist()))
    split = [tensor[0].transpose(0, 1).split(runs.patches) for tensor in (query, key, value)]
    outputs: dict[int, torch.Tensor] = {}
    for length, members in runs.members.items():
        batch = [_join([parts[run] for run in members]).unflatten(0, (-1, length)) for parts in split]
        windows = scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in batch), dropout_p=dropout, scale=scaling
        )
        found = windows.transpose(1, 2).flatten(0, 1).split([runs.patches[run] for run in members])
        outputs.update(zip(members, found, strict=True))
    return _join([outputs[run] for run in range(len(runs.patches))])[None], None


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
