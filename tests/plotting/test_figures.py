"""Figures of data and rollouts show what is there: read back from the drawn objects."""

import copy
import re

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from ivgr.callbacks.rollout_log import rollout_rows
from ivgr.core.query import rollouts_of
from ivgr.packing.prefix_tree import split_tree, tree_length
from ivgr.plotting.data_figures import draw_frames, draw_gallery, draw_tree
from ivgr.plotting.rollout_figures import draw_rollouts, rollouts_table
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.toy import RuleJudge
from ivgr.toy.world import World, draw_samples
from ivgr.trainer.rl_step import assign_advantages
from support.one_iteration import Run
from support.samples import make_query, make_rollout, make_sample, response


@pytest.fixture(scope="module")
def run(tiny):
    return Run(tiny)


def outlines(panel):
    """The boxes (x1, y1, x2, y2) drawn in a panel; each is drawn twice, white behind."""
    boxes = [patch.get_bbox().extents for patch in panel.patches if isinstance(patch, Rectangle)]
    return np.array(boxes[::2])


def test_scoring_alone_gives_what_an_iteration_gives(run):
    queries = copy.deepcopy(run.queries)
    for rollout in rollouts_of(queries):
        rollout.terms, rollout.reward, rollout.reference = {}, None, None
    Scorer(Rewards(), RuleJudge()).score(queries)
    assign_advantages(queries)
    assert rollout_rows(queries) == rollout_rows(run.queries)
    assert any(rollout.reference for rollout in rollouts_of(queries))


def test_a_gallery_shows_every_gold_box_in_pixels():
    samples = list(draw_samples(World("val", 6)))
    panels = draw_gallery(samples, columns=3).axes
    assert len(panels) == 6
    for panel, sample in zip(panels, samples, strict=True):
        assert np.allclose(outlines(panel).reshape(-1, 4), np.reshape(sample.boxes, (-1, 4)))
        assert [text.get_text() for text in panel.texts] == list(sample.labels)
        assert sample.answer in panel.get_title(loc="left")


def test_frames_show_one_place_in_three_coordinates(tiny):
    sample = next(draw_samples(World("val", 1, seed=3)))
    size = sample.open_images()[0].size
    relative = [np.array(box) / (size * 2) for box in sample.boxes]
    for panel in draw_frames(sample, tiny[1]).axes:
        width, height = panel.get_xlim()[1], panel.get_ylim()[0]
        assert np.allclose(outlines(panel) / np.tile([width, height], 2), relative)
        written = re.findall(r"<box>\[([\d,]+)\]</box>", panel.get_title())
        assert np.allclose([list(map(float, box.split(","))) for box in written], outlines(panel), atol=0.5)
        pixels = tuple(map(int, re.findall(r"(\d+) x (\d+) pixels", panel.get_title())[0]))
        assert (width, height) == (pixels if "qwen2_5_vl" in panel.get_title() else (1000, 1000))


def test_the_tree_is_coloured_where_a_token_sees(tiny, run):
    query = next(query for query in run.queries if len(query.groups) == 2)
    (panel,) = draw_tree(tiny[0], query).axes
    picture = panel.images[0].get_array()
    assert picture.shape[:2] == (tree_length(query), tree_length(query))
    prefix, triangle = len(query.prefix), lambda n: n * (n + 1) // 2
    seen = triangle(prefix)
    for group in query.groups:
        stem = prefix + len(group.instruction)
        seen += triangle(stem) - triangle(prefix)
        seen += sum(triangle(stem + len(r.tokens)) - triangle(stem) for r in group.rollouts)
    assert (picture < 1).any(-1).sum() == seen
    assert f"{sum(map(tree_length, split_tree(query, 0)))} tokens" in panel.get_title()


def test_bars_add_up_to_the_reward_and_show_the_advantage(run):
    weights = Rewards().weights
    for query in run.queries:
        panels = draw_rollouts(query, weights).axes[1:]
        for panel, group in zip(panels, query.groups, strict=True):
            ends = {n: 0.0 for n in range(len(group.rollouts))}
            for bar in panel.patches:
                ends[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
            assert list(ends.values()) == pytest.approx([r.reward for r in group.rollouts])
            assert [t.get_text() for t in panel.texts] == [f"{r.advantage:+.2f}" for r in group.rollouts]


def test_the_picture_shows_gold_and_written_boxes_in_pixels(run):
    query = next(
        query for query in run.queries if query.boxes and "<box>" in query.groups[0].rollouts[0].text
    )
    drawn = outlines(draw_rollouts(query, Rewards().weights).axes[0])
    assert np.allclose(drawn[-len(query.boxes) :], query.sample.boxes)
    assert len(drawn) > len(query.boxes)


def test_the_table_escapes_what_the_model_wrote():
    grounded = [make_rollout(response("<b>bold</b>"), format=1.0), make_rollout("x", format=0.0)]
    textual = [make_rollout("y", format=1.0)]
    textual[0].reward, textual[0].advantage = 1.25, -0.5
    table = rollouts_table(make_query(make_sample(), grounded=grounded, textual=textual))
    assert "<b>" not in table and "&lt;think&gt;&lt;b&gt;bold" in table
    assert table.count("<tr>") == 3 and "reward 1.25, advantage -0.50" in table
    assert "reward unknown" in table
