"""Attention of one token per branch over the branch's own pages, merged with what it saw of its prefix.

Keys and values of a branch lie in pages of PAGE tokens anywhere in a pool; a table says which. One program
serves the query heads of one key head of one branch: online softmax (arXiv 1805.02867) over the pages, in
fp32, starting from the token itself, whose key and value it writes to its page. Softmaxes over two sets of
keys are merged by their log-sum-exp, as PagedAttention (arXiv 2309.06180) and cascade attention do.
"""

# Triton compiles these functions: operators and calls mean what it says they mean.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl

PAGE = 64
# Rows of a tensor core's product.
LEAST = 16
LAUNCH = {"num_warps": 4, "num_stages": 2}
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


def attend_pages(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    pages: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    position: torch.Tensor,
    prefix: tuple[torch.Tensor, torch.Tensor],
    scaling: float,
) -> torch.Tensor:
    """Writes the keys and values of R branches' tokens into their pages; returns the tokens' attention
    (R, H, G, D) over prefix and own tokens, in the values' dtype.

    query (R, H, G, D); key, value (R, H, D); pages: keys and values (N, H, PAGE, D); table (R, ·): each
    branch's pages in order, int32; position (R,): the token's number in its branch; prefix: attention
    (R, H, G, D) over the prefix and its log-sum-exp (R, H, G, 1), fp32.
    """
    branches, heads, group, size = query.shape
    out = torch.empty(query.shape, dtype=value.dtype, device=query.device)
    _attend[(branches, heads)](
        query.contiguous(), key.contiguous(), value.contiguous(), *pages, table, table.stride(0), position,
        *(part.contiguous() for part in prefix), out, scaling,
        HEADS=heads, GROUP=group, ROWS=max(LEAST, triton.next_power_of_2(group)),
        SIZE=size, WIDE=max(LEAST, triton.next_power_of_2(size)), PAGE=PAGE, **LAUNCH,
    )  # fmt: skip
    return out


@triton.jit
def _attend(
    query,
    key,
    value,
    key_pages,
    value_pages,
    table,
    table_stride,
    position,
    prefix,
    prefix_lse,
    out,
    scaling,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
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
    new_key = tl.load(key + own * SIZE + column, mask=inside, other=0.0)
    new_value = tl.load(value + own * SIZE + column, mask=inside, other=0.0)
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

    before_lse = tl.load(prefix_lse + own * GROUP + row, mask=row < GROUP, other=0.0)
    before = tl.load(prefix + spots, mask=real, other=0.0)
    share = tl.sigmoid(before_lse - top - tl.log(total))[:, None]
    both = share * before + (1.0 - share) * found / total[:, None]
    tl.store(out + spots, both.to(out.dtype.element_ty), mask=real)
