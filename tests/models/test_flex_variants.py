"""FlexAttention stays compiled, however many shapes it meets; where it could not, it says so."""

import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention import flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from ivgr.models import tree_attention as attention
from ivgr.models.tree_attention import attend_mask, block_mask

LAYER = torch.nn.Module().eval()


@pytest.fixture
def compiled(monkeypatch):
    """The kernels that dynamo makes, by their number of inputs; they are not compiled further,
    which needs a GPU."""
    found = []

    def backend(graph, inputs):
        found.append(len(inputs))
        return graph.forward

    call = torch.compile(flex_attention.flex_attention, backend=backend)
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(WrappedFlexAttention, "__init__", lambda *_: None)
    monkeypatch.setattr(WrappedFlexAttention, "__call__", lambda _: call)
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


def attend(rows: int, length: int, heads: int = 4, gradients: bool = False) -> torch.Tensor:
    reach = torch.full((rows, length), length)
    query, key, value = torch.randn(3, rows, heads, length, 16, requires_grad=gradients)
    with torch.set_grad_enabled(gradients):
        return attend_mask(LAYER, query, key, value, block_mask(reach), scaling=0.25)


@pytest.mark.slow
def test_the_shapes_of_a_run_need_few_kernels(compiled):
    def iteration(lengths):
        for rows, gradients in ((16, False), (3, False), (1, False), (1, True)):
            for length in lengths:
                attend(rows, length, gradients=gradients)

    iteration((131, 240, 333))  # of two and of three blocks
    known = len(compiled)
    assert known <= 10
    iteration((150, 500, 187, 700))
    assert len(compiled) == known


def test_more_variants_than_dynamo_allows_stay_compiled(compiled):
    for heads in range(1, 12):
        attend(1, 140, heads)
    assert len(compiled) == 11


def test_past_the_limit_it_fails_instead_of_going_on_uncompiled(compiled, monkeypatch):
    monkeypatch.setattr(attention, "MOST_VARIANTS", 2)
    with pytest.raises(FailOnRecompileLimitHit):
        for heads in range(1, 5):
            attend(1, 140, heads)
    assert len(compiled) == 2
