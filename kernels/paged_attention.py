"""Attention of one token per branch to its prefix, which other branches share, and to its own pages.

The branches of a prefix meet its keys in one product: a program serves a piece of a prefix, one key head
and a tile of its branches' query heads. Keys and values of a branch itself lie in pages of PAGE tokens
anywhere in a pool; a table says which. A program of the second kernel serves the query heads of one key head
of one branch: online softmax (arXiv 1805.02867) over the pages, in fp32, starting from the token itself,
whose key and value it writes to its page, and merged by log-sum-exp with what the first kernel found.
See PagedAttention (arXiv 2309.06180) and Hydragen (arXiv 2402.05099).
"""

# Triton compiles these functions: operators and calls mean what it says they mean.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

from .prefixes import Prefixes

PAGE = 64
# Rows of a tensor core's product, and of a tile of query heads at the most.
LEAST, TILE = 16, 128
# Tokens of a piece of a prefix, and of a trip through it.
PIECE, TRIP = 512, 64
LAUNCH = {"num_warps": 4, "num_stages": 2}
PREFIX_LAUNCH = {"num_warps": 8, "num_stages": 2}
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def attend_prefixes(
    query: torch.Tensor, prefixes: Prefixes, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention of query (R, H, G, D) over each of C pieces of the branches' prefixes,
    (P, H, C, S, G, D), and its log-sum-exp (P, H, C, S, G), fp32."""
    _, heads, group, size = query.shape
    count, siblings = prefixes.table.shape
    length = prefixes.keys.shape[2]
    pieces, rows = triton.cdiv(length, PIECE), siblings * group
    tile = min(TILE, max(LEAST, triton.next_power_of_2(rows)))
    shape = (count, heads, pieces, siblings, group)
    out, lse = query.new_empty(*shape, size, dtype=torch.float32), query.new_empty(shape, dtype=torch.float32)
    _attend_prefix[(count * heads, pieces, triton.cdiv(rows, tile))](
        query.contiguous(), prefixes.keys, prefixes.values, prefixes.table, prefixes.bias, out, lse,
        prefixes.bias.stride(0), length, scaling,
        HEADS=heads, GROUP=group, SIBLINGS=siblings, ROWS=tile,
        SIZE=size, WIDE=max(LEAST, triton.next_power_of_2(size)), PIECE=PIECE, TRIP=TRIP, **PREFIX_LAUNCH,
    )  # fmt: skip
    return out, lse


def attend_pages(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    position: torch.Tensor,
    prefixes: Prefixes,
    scaling: float,
) -> torch.Tensor:
    """Writes the keys and values of R branches' tokens into their pages; returns the tokens' attention
    (R, H, G, D) over prefix and own tokens, in the values' dtype.

    query (R, H, G, D); key, value (R, H, D); pages: keys and values (N, H, PAGE, D); table (R, ·): each
    branch's pages in order, int32; position (R,): the token's number in its branch.
    """
    branches, heads, group, size = query.shape
    key, value = (part if part[0].is_contiguous() else part.contiguous() for part in (key, value))
    before, before_lse = attend_prefixes(query, prefixes, scaling)
    out = torch.empty(query.shape, dtype=value.dtype, device=query.device)
    _attend[(branches, heads)](
        query.contiguous(), key, key.stride(0), value, value.stride(0), *pages, table, table.stride(0),
        position, before, before_lse, prefixes.prefix_of, prefixes.column, before.shape[2], out, scaling,
        HEADS=heads, GROUP=group, SIBLINGS=before.shape[3], ROWS=max(LEAST, triton.next_power_of_2(group)),
        SIZE=size, WIDE=max(LEAST, triton.next_power_of_2(size)), PAGE=PAGE, **LAUNCH,
    )  # fmt: skip
    return out


@triton.jit
def _attend_prefix(
    query, keys, values, table, bias, out, lse, bias_stride, length, scaling,
    HEADS: tl.constexpr, GROUP: tl.constexpr, SIBLINGS: tl.constexpr, ROWS: tl.constexpr,
    SIZE: tl.constexpr, WIDE: tl.constexpr, PIECE: tl.constexpr, TRIP: tl.constexpr,
):  # fmt: skip
    prefix, head = tl.program_id(0).to(tl.int64) // HEADS, tl.program_id(0) % HEADS
    piece = tl.program_id(1)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    column, step = tl.arange(0, WIDE), tl.arange(0, TRIP)
    inside = column < SIZE
    sibling, real = row // GROUP, row < SIBLINGS * GROUP
    branch = tl.load(table + prefix * SIBLINGS + sibling, mask=real, other=0).to(tl.int64)
    spots = ((branch * HEADS + head) * GROUP + row % GROUP)[:, None] * SIZE + column[None, :]
    asked = tl.load(query + spots, mask=real[:, None] & inside[None, :], other=0.0)
    top = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    found = tl.zeros((ROWS, WIDE), tl.float32)
    for start in range(piece * PIECE, min((piece + 1) * PIECE, length), TRIP):
        token = start + step
        there = token < length
        places = ((prefix * HEADS + head) * length + token)[:, None] * SIZE + column[None, :]
        loaded = there[:, None] & inside[None, :]
        scores = tl.dot(
            asked, tl.trans(tl.load(keys + places, mask=loaded, other=0.0)), input_precision="ieee"
        )
        seen = real[:, None] & there[None, :]
        hidden = bias + prefix * bias_stride + sibling[:, None] * length + token[None, :]
        scores = scores * scaling + tl.load(hidden, mask=seen, other=LOWEST)
        scores = tl.where(there[None, :], scores, LOWEST)
        peak = tl.maximum(top, tl.max(scores, 1))
        weights = tl.where(there[None, :], tl.exp(scores - peak[:, None]), 0.0)
        kept = tl.exp(top - peak)
        taken = tl.load(values + places, mask=loaded, other=0.0)
        found = found * kept[:, None] + tl.dot(weights.to(taken.dtype), taken, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        top = peak
    first = ((prefix * HEADS + head) * tl.num_programs(1) + piece) * SIBLINGS * GROUP
    ends = (first + row)[:, None] * SIZE + column[None, :]
    tl.store(out + ends, found / total[:, None], mask=real[:, None] & inside[None, :])
    tl.store(lse + first + row, top + tl.log(total), mask=real)


@triton.jit
def _attend(
    query,
    key,
    key_stride,
    value,
    value_stride,
    key_pages,
    value_pages,
    table,
    table_stride,
    position,
    before,
    before_lse,
    prefix_of,
    place_of,
    pieces,
    out,
    scaling,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIBLINGS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    WIDE: tl.constexpr,
    PAGE: tl.constexpr,
):
    branch, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    own = branch * HEADS + head
    row, column, slot = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, PAGE)
    inside = column < SIZE
    spots = own * GROUP * SIZE + row[:, None] * SIZE + column[None, :]
    real = (row < GROUP)[:, None] & inside[None, :]
    asked = tl.load(query + spots, mask=real, other=0.0)

    # The token itself, whose place in the pages is not read below.
    last = tl.load(position + branch)
    new_key = tl.load(key + branch * key_stride + head * SIZE + column, mask=inside, other=0.0)
    new_value = tl.load(value + branch * value_stride + head * SIZE + column, mask=inside, other=0.0)
    page = tl.load(table + branch * table_stride + last // PAGE).to(tl.int64)
    place = ((page * HEADS + head) * PAGE + last % PAGE) * SIZE + column
    tl.store(key_pages + place, new_key, mask=inside)
    tl.store(value_pages + place, new_value, mask=inside)
    top = tl.sum(asked.to(tl.float32) * new_key[None, :].to(tl.float32), 1) * scaling
    total = tl.full((ROWS,), 1.0, tl.float32)
    found = tl.zeros((ROWS, WIDE), tl.float32) + new_value[None, :].to(tl.float32)

    for start in range(0, last, PAGE):
        page = tl.load(table + branch * table_stride + start // PAGE).to(tl.int64)
        places = ((page * HEADS + head) * PAGE + slot)[:, None] * SIZE + column[None, :]
        seen = start + slot < last
        loaded = seen[:, None] & inside[None, :]
        keys = tl.load(key_pages + places, mask=loaded, other=0.0)
        scores = tl.dot(asked, tl.trans(keys), input_precision="ieee") * scaling
        scores = tl.where(seen[None, :], scores, LOWEST)
        peak = tl.maximum(top, tl.max(scores, 1))
        kept = tl.exp(top - peak)
        weights = tl.where(seen[None, :], tl.exp(scores - peak[:, None]), 0.0)
        values = tl.load(value_pages + places, mask=loaded, other=0.0)
        found = found * kept[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        total = total * kept + tl.sum(weights, 1)
        top = peak

    prefix = tl.load(prefix_of + branch)
    sibling = tl.load(place_of + branch)
    for piece in range(0, pieces):
        first = (((prefix * HEADS + head) * pieces + piece) * SIBLINGS + sibling) * GROUP
        other = tl.load(before_lse + first + row, mask=row < GROUP, other=LOWEST)
        part = tl.load(before + (first + row)[:, None] * SIZE + column[None, :], mask=real, other=0.0)
        peak = tl.maximum(top, other)
        kept, share = tl.exp(top - peak), tl.exp(other - peak)
        found = found * kept[:, None] + part * share[:, None]
        total = total * kept + share
        top = peak
    tl.store(out + spots, (found / total[:, None]).to(out.dtype.element_ty), mask=real)
