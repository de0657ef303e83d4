"""The blocks of a tree's mask, against torch's own `create_block_mask`, which looks at every two tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from ivgr.models.tree_attention import BLOCK, block_mask, visible, visible_from
from ivgr.tools.bench.measure import LiveBytes

# A node has tokens of its own and children; a row is trees, one behind the other.
node = st.recursive(
    st.tuples(st.integers(1, 300), st.just([])),
    lambda children: st.tuples(st.integers(0, 300), st.lists(children, min_size=1, max_size=4)),
    max_leaves=8,
)
rows = st.lists(st.lists(node, min_size=1, max_size=3), min_size=1, max_size=3)


def lay_out(node, start=0):
    """The reach of every token of a tree that begins at column `start`."""
    own, children = node
    below, end = [], start + own
    for child in children:
        below += lay_out(child, end)
        end = start + own + len(below)
    return [end] * own + below


def reach_of(rows):
    """(B, L), padded as `pack_queries` pads: a token of padding reaches no other."""
    found = []
    for trees in rows:
        row = []
        for tree in trees:
            row += lay_out(tree, len(row))
        found.append(row)
    width = max(map(len, found))
    return torch.tensor([row + list(range(len(row) + 1, width + 1)) for row in found])


def by_brute_force(reach):
    length = reach.shape[1]
    return create_block_mask(
        lambda row, head, query, key: (query >= key) & (query < reach[row, key]),
        len(reach), None, length, length, device="cpu",
    )  # fmt: skip


def blocks_of(mask, part):
    """How many blocks each row of blocks has, and their indices."""
    return getattr(mask, f"{part}_num_blocks"), getattr(mask, f"{part}_indices")


def chosen(count, indices):
    """The same as lists."""
    return [row[:n].tolist() for n, row in zip(count.flatten().tolist(), indices.flatten(0, 2), strict=True)]


PARTS = ("kv", "full_kv", "q", "full_q")


@given(rows=rows)
def test_blocks_are_those_of_a_mask_of_every_two_tokens(rows):
    reach = reach_of(rows)
    own, oracle = block_mask(reach), by_brute_force(reach)
    assert own.seq_lengths == oracle.seq_lengths and own.BLOCK_SIZE == oracle.BLOCK_SIZE == (BLOCK, BLOCK)
    for part in PARTS:
        found, expected = blocks_of(own, part), blocks_of(oracle, part)
        assert chosen(*found) == chosen(*expected), part
        assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]


@given(rows=rows)
def test_full_blocks_and_partial_ones_make_up_the_mask(rows):
    """Every two tokens: those of a full block, and those of a partial one by its function."""
    reach = reach_of(rows)
    mask, length = block_mask(reach), reach.shape[1]
    token = torch.arange(length)
    by_function = mask.mask_mod(
        torch.arange(len(reach))[:, None, None], torch.tensor(0), token[:, None], token[None]
    )
    seen = torch.zeros(len(reach), length, length, dtype=torch.bool)
    blocks = -(-length // BLOCK)
    for full, part in ((False, "kv"), (True, "full_kv")):
        for place, keys in enumerate(chosen(*blocks_of(mask, part))):
            row, query = divmod(place, blocks)
            for key in keys:
                box = (row, *(slice(block * BLOCK, (block + 1) * BLOCK) for block in (query, key)))
                seen[box] = True if full else by_function[box]
    assert torch.equal(seen, visible(reach))


@given(rows=rows, seed=st.integers(0, 99))
def test_what_a_few_tokens_see_is_their_part_of_the_whole_mask(rows, seed):
    reach, generator = reach_of(rows), torch.Generator().manual_seed(seed)
    row = torch.randint(len(reach), (5,), generator=generator)
    column = torch.randint(reach.shape[1], (5,), generator=generator)
    assert torch.equal(visible_from(reach, row, column), visible(reach)[row, column])


@pytest.mark.parametrize("rows", [1, 3])
def test_memory_grows_with_blocks_and_not_with_tokens(rows):
    """Of a prefix with 14 answers: a byte for every two tokens would be 268 MB a row."""
    length = 1 << 14
    reach = reach_of([[(2048, [(1024, [])] * 14)]] * rows)
    assert reach.shape == (rows, length)
    with LiveBytes() as live:
        mask = block_mask(reach)
    assert live.peak < 1_000_000 * rows
    kept = sum(getattr(mask, f"{part}_indices").nbytes for part in PARTS)
    assert kept == rows * len(PARTS) * 4 * (length // BLOCK) ** 2  # 256 KiB a row
    with LiveBytes() as live:
        visible_from(reach, torch.zeros(4, dtype=torch.long), torch.arange(4))
    assert live.peak < 50 * length


def test_no_number_of_a_mask_is_read():
    """PyTorch's meta device has none to read: a GPU's host would wait for them."""
    reach = torch.full((2, 300), 300, device="meta")
    assert block_mask(reach).kv_indices.shape == (2, 1, 3, 3)
    assert visible_from(reach, *torch.zeros(2, 4, dtype=torch.long, device="meta")).shape == (4, 300)
