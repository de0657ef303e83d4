"""Attention over prefix trees, which transformers knows as the implementation "tree".

In a tree laid out depth first, every node's subtree is one run of tokens. So one number a
token, `reach`, the column where its node's subtree ends, says who sees it: a later token q
sees token k if q < reach[k]. What flows in: a layer's queries, keys and values, with the
mask of `tree_mask`. Out: its attention output. Nothing of the model is patched: see
https://huggingface.co/docs/transformers/attention_interface.
"""

from typing import Any, Protocol

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ivgr.models.registry import find_family

NAME = "tree"
# Kernels that FlexAttention may be compiled into: with and without gradients, one row and several, for
# each model. Past dynamo's own limit of 8 it would go on uncompiled, with a score for every two tokens.
MOST_VARIANTS = 64
# Rows under 128 tokens would go to FlexAttention's decoding kernel, which compiles for no more than 128
# tokens x query heads of a key head.
KERNEL = {"BACKEND": "TRITON"}
# Tokens of a block that FlexAttention skips, masks or takes whole; its default.
BLOCK = 128


class LayerCache(Protocol):
    """A rollout's cache over all layers; `attend` takes (rows, heads, length, size) tensors and returns
    (rows, length, heads, size)."""

    def attend(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | BlockMask,
        scaling: float,
    ) -> torch.Tensor: ...


def use_tree_attention(model: PreTrainedModel) -> None:
    """Lets the language model (not the vision tower) attend by tree."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    language: Any = find_family(model.config.model_type).language_model(model)
    language.set_attn_implementation(NAME)


def uses_flex(device: torch.device) -> bool:
    """FlexAttention skips what a tree hides, but only its CUDA kernels train."""
    return device.type == "cuda"


def tree_mask(reach: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | BlockMask:
    """The mask of rows with `reach` (B, L): additive (B, 1, L, L), or on CUDA blocks."""
    if uses_flex(reach.device):
        return block_mask(reach)
    seen = torch.zeros(*reach.shape, reach.shape[1], dtype=dtype, device=reach.device)
    return seen.masked_fill_(~visible(reach), torch.finfo(dtype).min)[:, None]


def visible(reach: torch.Tensor) -> torch.Tensor:
    """(B, L, L) bool: token q (second axis) sees token k (third)."""
    column = torch.arange(reach.shape[1], device=reach.device)
    return (column[:, None] >= column) & (column[:, None] < reach[:, None, :])


def visible_from(reach: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """(G, L) bool: what the tokens at `row`, `column` (G,) see. Equals `visible(reach)[row, column]`."""
    key = torch.arange(reach.shape[1], device=reach.device)
    return (key <= column[:, None]) & (column[:, None] < reach[row])


def block_mask(reach: torch.Tensor) -> BlockMask:
    """Returns the same mask for FlexAttention, in memory for (L / BLOCK)² numbers. A token must see
    itself."""

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (query >= key) & (query < reach[row, key])

    length = reach.shape[1]
    partial, full = _classify_blocks(reach)
    return BlockMask.from_kv_blocks(
        *_chosen_first(partial),
        *_chosen_first(full),
        BLOCK_SIZE=BLOCK,
        mask_mod=sees,
        seq_lengths=(length, length),
    )


def _classify_blocks(reach: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns which blocks of query tokens (third axis) see a part, and which all, of a block of key tokens
    (fourth): two masks (B, 1, N, N). Before the diagonal a query sees every key that reaches beyond it, so
    the farthest and the nearest reach of a block of keys decide. No block in which the row ends is full."""
    parts = functional.pad(reach, (0, -reach.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))[:, None, None]
    farthest, nearest = parts.amax(-1), parts.amin(-1)
    key = torch.arange(farthest.shape[-1], device=reach.device)
    query = key[:, None]
    some = (key == query) | (key < query) & (farthest > query * BLOCK)
    full = (key < query) & (nearest >= (query + 1) * BLOCK)
    return some & ~full, full


def _chosen_first(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns how many blocks each row of `blocks` chooses, and the indices of all, the chosen ones first."""
    order = blocks.byte().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask,
    tree_cache: LayerCache | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function: a rollout's cache answers where there is one."""
    if tree_cache is not None:
        scaling = options["scaling"]
        return tree_cache.attend(module, query, key, value, attention_mask, scaling), None
    return attend_mask(module, query, key, value, attention_mask, **options), None


def attend_mask(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | BlockMask,
    **options: Any,
) -> torch.Tensor:
    """Attention under a mask of either kind: (rows, length, heads, size)."""
    if not isinstance(mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, mask, **options)[0]
    with dynamo.patch(recompile_limit=MOST_VARIANTS, fail_on_recompile_limit_hit=True):
        return flex_attention_forward(module, query, key, value, mask, kernel_options=KERNEL, **options)[0]
