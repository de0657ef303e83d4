"""The probes' figures say what was found."""

import matplotlib

matplotlib.use("Agg")

import pytest

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.data.shards import write_shards
from ivgr.tools.probes import probe_attention, probe_causal, probe_localization
from ivgr.tools.probes import probe_figures as figures
from ivgr.tools.probes.loading import draw_questions, open_policy, read_questions
from support.probing import random_policy, says, world_samples

STREAMS = (GROUNDED, TEXTUAL)


@pytest.fixture(scope="module")
def policy():
    return random_policy("qwen3_vl")


@pytest.fixture(scope="module")
def readings(policy):
    found = [says(policy[1], sample) for sample in world_samples(12)]
    return {stream: found for stream in STREAMS}


def drawn_texts(axes):
    return [text.get_text() for text in axes.texts]


def test_every_head_stands_at_its_place(policy, readings):
    found = probe_attention(policy[0], readings[TEXTUAL], ["think"])["think"]
    axes = figures.show_heads({"textual": found}).axes[0]
    assert axes.get_title() == "textual"
    expected = [f"{head.mean / found.area.mean:.1f}" for heads in found.heads for head in heads]
    assert drawn_texts(axes) == expected


def test_attention_is_drawn_by_stream_and_look(policy, readings):
    found = {stream: probe_attention(policy[0], part) for stream, part in readings.items()}
    left, right = figures.show_attention(found).axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == [f"{stream}, {look}" for stream in STREAMS for look in ("think", "noun", "place")]
    marks = [float(line.get_xdata()[0]) for line in right.lines if line.get_marker() == "o"]
    assert marks == [one.pointing.mean for looks in found.values() for one in looks.values()]


def test_readouts_stand_at_their_layers(policy, readings):
    found = {
        stream: {point: probe_localization(policy[0], part, point) for point in ("noun", "place")}
        for stream, part in readings.items()
    }
    baseline = found[TEXTUAL]["noun"][0]
    figure = figures.show_readouts(found, {"an encoder": baseline})
    left, _ = figure.axes
    heights = {float(line.get_ydata()[0]) for line in left.lines if line.get_marker() == "o"}
    assert heights == {one.centre.mean for points in found.values() for one in points["noun"].values()}
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert named == {*STREAMS, "shuffled labels", "an encoder"}


def test_drops_and_maps_are_drawn_for_both_streams(policy, readings):
    model, encoder = policy
    found = {s: probe_causal(model, encoder.processor.tokenizer, part) for s, part in readings.items()}
    axes = figures.show_drops(found).axes
    marks = [float(line.get_xdata()[0]) for line in axes[2].lines if line.get_marker() == "o"]
    expected = [drop.mean for one in found.values() for drop in (one.reasoning.inside, one.reasoning.outside)]
    assert marks == expected
    maps = figures.show_maps(model, {s: part[:3] for s, part in readings.items()}, "think", 0, 1)
    assert len(maps.axes) == 6 and all(axes.images for axes in maps.axes)
    assert [maps.axes[0].get_ylabel(), maps.axes[3].get_ylabel()] == list(STREAMS)


def test_questions_are_drawn_or_read(tmp_path):
    samples = draw_questions(7)
    assert len(samples) == 7 and all(sample.kind == "paired" for sample in samples)
    write_shards(tmp_path, "val", samples, 3)
    assert read_questions(str(tmp_path), 5) == samples[:5]
    with pytest.raises(UserError, match="no shard matches"):
        read_questions(str(tmp_path / "nothing"), 5)


def test_a_policy_is_opened_with_its_encoder():
    policy, encoder = open_policy("tiny", max_pixels=112 * 112)
    assert not policy.training and encoder.model_type == "qwen2_vl"
    assert encoder(draw_questions(1)[0]).image_grid_thw.prod() <= 64
