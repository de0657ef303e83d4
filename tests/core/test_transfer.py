"""Several tensors in one copy come out as they went in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.transfer import ALIGNED, cat_pinned, send_together

shapes = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=5)


@given(shapes)
def test_what_is_sent_together_arrives_apart(shapes):
    tensors = [torch.randint(0, 99, shape) for shape in shapes]
    arrived = send_together(tensors, torch.device("cpu"))
    assert all(map(torch.equal, arrived, tensors))
    assert len({part.untyped_storage().data_ptr() for part in arrived}) == 1
    assert all(part.storage_offset() % ALIGNED == 0 for part in arrived)


def test_a_row_is_whole():
    parts = [torch.randn(count, 4).bfloat16() for count in (3, 1, 2)]
    assert torch.equal(cat_pinned(parts, torch.device("cpu")), torch.cat(parts))
