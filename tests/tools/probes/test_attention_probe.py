"""Attention figures where the truth is known: boxes on a raster, heads that look everywhere alike,
and a head that points."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ivgr.core.frame import Frame
from ivgr.models.registry import find_family
from ivgr.tools.probes.attention_probe import probe_attention
from ivgr.tools.probes.heatmap import draw_heat, draw_readings, heat_of
from ivgr.tools.probes.token_grid import coverage, grid_shape
from ivgr.tools.probes.trace import trace_readings
from support.families import FAMILIES
from support.probing import KnownTower, random_policy, says, with_tokens, world_samples

FINE = 8
side = st.integers(0, 40)
box = st.tuples(side, side, side, side).map(lambda c: (*map(min, c[:2], c[2:]), *map(max, c[:2], c[2:])))


@given(st.lists(box, max_size=4), st.integers(1, 5), st.integers(1, 5))
def test_coverage_is_what_a_fine_raster_counts(boxes, rows, columns):
    """Boxes with corners on a raster of 40 x 40, painted there."""
    painted = np.zeros((40 * rows, 40 * columns), bool)
    for x1, y1, x2, y2 in boxes:
        painted[y1 * rows : y2 * rows, x1 * columns : x2 * columns] = True
    expected = painted.reshape(rows, 40, columns, 40).mean((1, 3))
    np.testing.assert_allclose(coverage(boxes, Frame(40, 40), (rows, columns)), expected, atol=1e-12)


def test_coverage_ends_at_the_picture():
    assert coverage([(-5, -5, 5, 20)], Frame(10, 10), (1, 2)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_even_look_leaves_in_the_boxes_their_share_of_the_picture(family):
    model, encoder = random_policy(family)
    for layer in find_family(family).decoder_layers(model):
        layer.self_attn.q_proj.weight.data.zero_()
    readings = [says(encoder, sample) for sample in world_samples(6)]
    for found in probe_attention(model, readings).values():
        assert found.inside.mean == pytest.approx(found.area.mean, abs=1e-6)
        assert found.inside.count == 6 and 0 < found.image.mean < 1
        assert found.inside.low < found.inside.mean < found.inside.high
        for heads in found.heads:
            assert [head.mean for head in heads] == pytest.approx([found.area.mean] * len(heads), abs=1e-6)


def pointing_policy():
    """Head 0 of layer 0 looks for what marks a token of a gold box; the rest look evenly."""
    model, encoder = random_policy("qwen2_vl")
    language = model.model.language_model
    language.rotary_emb.inv_freq.zero_()
    language.embed_tokens.weight.data[:, 0] = 0
    width = model.config.text_config.hidden_size
    model.model.visual = KnownTower(width)
    for layer in language.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    first = language.layers[0].self_attn
    size = first.head_dim
    first.q_proj.bias.data[0] = 10.0
    first.k_proj.weight.data[:size] = 0
    first.k_proj.weight.data[0, 0] = 10.0
    return model, encoder, width


def mark(model, reading, width):
    """Tokens that a gold box touches are the first unit vector, the others the second."""
    query = reading.query
    touched = coverage(query.boxes, query.frame, grid_shape(model, query)).ravel() > 0
    return with_tokens(reading, torch.eye(width)[torch.from_numpy(1 - touched.astype(int))])


def test_a_head_that_points_is_found():
    model, encoder, width = pointing_policy()
    samples = [sample for sample in world_samples(24) if len(sample.boxes) == 1]
    readings = [mark(model, says(encoder, sample), width) for sample in samples]
    found = probe_attention(model, readings, ["think"])["think"]
    assert found.pointing_heads[0][0].mean == 1.0
    assert found.best.mean == pytest.approx(found.heads[0][0].mean)
    # All of its attention lies on touched tokens; of those the box covers a part.
    shares = []
    for reading in readings:
        covered = coverage(reading.query.boxes, reading.query.frame, grid_shape(model, reading.query))
        shares.append(covered[covered > 0].mean())
    assert found.heads[0][0].mean == pytest.approx(np.mean(shares), abs=1e-3)
    assert found.heads[0][1].mean == pytest.approx(found.area.mean, abs=1e-6)
    assert found.area.mean < found.inside.mean < found.heads[0][0].mean
    assert found.pointing_chance.mean < 0.5
    assert found.heads[0][0].low > found.chance.high


def test_the_heat_map_is_hot_where_the_head_points():
    model, encoder, width = pointing_policy()
    sample = next(sample for sample in world_samples(4) if len(sample.boxes) == 1)
    reading = mark(model, says(encoder, sample), width)
    (traced,) = trace_readings(model, [reading], [0])
    query = reading.query
    touched = coverage(query.boxes, query.frame, grid_shape(model, query)) > 0
    heat = heat_of(model, traced, "place", head=0)
    assert heat[touched].sum() == pytest.approx(1, abs=1e-3) and heat.sum() == pytest.approx(1)
    image = sample.open_images()[0]
    drawn = np.asarray(draw_heat(image, heat, side=96)).astype(int).sum(2)
    mask = np.asarray(Image.fromarray(touched).resize(drawn.shape[::-1], Image.Resampling.NEAREST))
    assert drawn[mask].mean() > drawn[~mask].mean() + 100
    assert draw_readings(model, [reading] * 2, "think", 0, 64).shape == (64, 128, 3)


def test_nothing_to_look_at_is_nan_over_no_image():
    model, encoder = random_policy("qwen2_vl")
    silent = [says(encoder, sample, "no reasoning") for sample in world_samples(2)]
    found = probe_attention(model, silent)["think"]
    assert found.inside.count == 0 and np.isnan(found.inside.mean) and found.heads == ()
