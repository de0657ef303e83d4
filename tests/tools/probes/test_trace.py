"""What a traced pass sees, against stock transformers' own eager attention and hidden states."""

import copy

import pytest
import torch

from ivgr.core.errors import UserError
from ivgr.models.registry import find_family
from ivgr.tools.probes.annotated_response import AnnotatedResponse, Mention
from ivgr.tools.probes.token_grid import image_columns
from ivgr.tools.probes.trace import choose_layers, trace_readings
from support.families import FAMILIES, make_tree, tiny_family

LENGTH = 9
THINK, MENTIONS = (1, 2, 4, 7), (Mention(0, 2, 5), Mention(1, 6, None))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return tiny_family(request.param)


def readings_of(model, count=3):
    generator = torch.Generator().manual_seed(1)
    shapes = [[(2, 3), (2, 2)], [(3, 1)], [(2, 2)]][:count]
    trees = [make_tree(model, generator, images, 1, [[LENGTH]]) for images in shapes]
    return [AnnotatedResponse(tree, THINK, MENTIONS) for tree in trees]


@torch.no_grad()
def stock(model, reading):
    """Attention (layers, heads, L, L) and hidden states (layers, L, H) of the row alone."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    query = reading.query
    ids = torch.cat([query.prefix, query.groups[0].instruction, query.groups[0].rollouts[0].tokens])[None]
    found = []
    hooks = [
        layer.register_forward_hook(lambda _m, _i, output: found.append(output))
        for layer in find_family(model.config.model_type).decoder_layers(eager)
    ]
    output = eager(
        input_ids=ids,
        pixel_values=query.pixel_values,
        image_grid_thw=query.image_grid_thw,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        output_attentions=True,
    )
    for hook in hooks:
        hook.remove()
    return torch.stack([weights[0] for weights in output.attentions]), torch.stack([f[0] for f in found])


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_attention_and_states_equal_stock_eager_attention(model, budget):
    readings = readings_of(model)
    traced = list(trace_readings(model, readings, budget=budget))
    assert [one.reading for one in traced] == readings
    for one in traced:
        weights, states = stock(model, one.reading)
        image = image_columns(model, one.reading.query)
        rows, columns = one.reading.query.image_grid_thw[0, 1:].tolist()
        assert len(image) == rows * columns // 4
        start = one.reading.start
        think = weights[:, :, [start + token for token in THINK]].mean(2)[..., image]
        torch.testing.assert_close(one.think, think, atol=1e-5, rtol=0)
        points = [start + token for token in (2, 6, 5)]  # nouns, then places
        looks = weights[:, :, points][..., image].permute(2, 0, 1, 3)
        torch.testing.assert_close(one.looks, looks, atol=1e-5, rtol=0)
        torch.testing.assert_close(one.states, states[:, points].transpose(0, 1), atol=1e-4, rtol=1e-4)
        assert one.at("noun", one.states).shape[0] == 2 and one.at("place", one.states).shape[0] == 1


def test_chosen_layers_are_those_of_the_whole(model):
    readings = readings_of(model)
    for some, every in zip(
        trace_readings(model, readings, [-1, 0]), trace_readings(model, readings), strict=True
    ):
        assert torch.equal(some.states, every.states[:, [0, 2]])
        assert torch.equal(some.looks, every.looks[:, [0, 2]])
        assert torch.equal(some.think, every.think[[0, 2]])


def test_many_tokens_are_read_in_parts(model, monkeypatch):
    readings = readings_of(model)
    whole = [one.think for one in trace_readings(model, readings)]
    monkeypatch.setattr("ivgr.tools.probes.trace.ROWS", 3)
    for one, expected in zip(trace_readings(model, readings), whole, strict=True):
        torch.testing.assert_close(one.think, expected, atol=1e-6, rtol=0)


def test_a_pass_that_is_looked_into_leaves_nothing_behind(model):
    (reading,) = readings_of(model, 1)
    list(trace_readings(model, [reading]))
    for layer in find_family(model.config.model_type).decoder_layers(model):
        assert not layer._forward_hooks


def test_silence_is_no_look():
    model = tiny_family("qwen2_vl")
    (reading,) = readings_of(model, 1)
    (one,) = trace_readings(model, [AnnotatedResponse(reading.query, (), ())])
    assert one.think.isnan().all() and one.looks.shape[0] == one.states.shape[0] == 0


def test_a_layer_that_is_not_there_is_refused():
    model = tiny_family("qwen2_vl")
    assert choose_layers(model, None) == (0, 1, 2) and choose_layers(model, [-1, 2, 0]) == (0, 2)
    with pytest.raises(UserError, match="no layer 3; the model has 3"):
        choose_layers(model, [3])
