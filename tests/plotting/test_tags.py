"""What figures are called, old and new."""

import re
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from ivgr.core.prompts import STREAMS
from ivgr.plotting.chart_layout import CHARTS
from ivgr.plotting.event_files import read_curves
from ivgr.plotting.tags import DESCRIPTIONS, OWN, RENAMED, Name, describe, name_of

SHIPPED = Path(__file__).parents[2] / "notebooks" / "data"


@pytest.mark.parametrize(
    ("metric", "tag", "stream"),
    [
        ("grounded/reward/total/mean", "reward/total", "grounded"),
        ("single/reward/accuracy/std", "reward_std/accuracy", "single"),
        ("textual/rollout/length_mean", "rollout/length", "textual"),
        ("rollout/length_mean", "rollout/length", None),
        ("textual/policy/kl", "rollout/kl", "textual"),
        ("policy/clip_low", "update/clip_low", None),
        ("optim/grad_norm", "update/grad_norm", None),
        ("guard/skipped", "update/skipped", None),
        ("judge/failures/reply", "reward_judge/failures/reply", None),
        ("consistency/share_0.3", "reward_consistency/share_0.3", None),
        ("data/rejected/image: truncated", "samples/rejected/image: truncated", None),
        ("advantage/flat_share_after", "zero_std/share_after", None),
        ("val/textual/accuracy", "held_out/accuracy_whole", "textual"),
        ("probe/grounded/attention_inside", "probe/attention_inside", "grounded"),
        ("bench/vstar/text/accuracy", "bench/vstar/text/accuracy", None),
        ("my/own", "my/own", None),
    ],
)
def test_a_metric_has_a_tag_that_its_streams_share(metric, tag, stream):
    assert name_of(metric) == (tag, stream)
    assert name_of(tag) == (tag, None)
    assert name_of(str(Name(tag, stream))) == (tag, stream)


def test_what_matters_sorts_first():
    """TensorBoard sorts groups by name and opens two."""
    plain = [re.sub(r"\\.*|\W.*", "", re.sub(r"/.*", "", pattern)) for pattern in DESCRIPTIONS]
    groups = sorted(set(plain) - {"bench", "probe"})  # those are there where a callback was asked for
    assert groups[:2] == ["held_out", "reward"]
    assert groups[-4:] == ["time", "update", "val", "zero_std"]


def test_every_tag_of_the_charts_is_described():
    for charts in CHARTS.values():
        for pattern in charts.values():
            for tag in (
                re.sub(r"\((.+?)\|(.+?)\)", r"\1", pattern),
                re.sub(r"\((.+?)\|(.+?)\)", r"\2", pattern),
            ):
                assert describe(tag) != OWN, tag


def test_a_description_names_what_the_tag_names():
    assert "image: truncated" in describe("samples/rejected/image: truncated")
    assert "tone" in describe("reward/tone") and "tone" in describe("held_out/tone_subset")
    assert describe("my/own") == OWN


def test_the_shipped_runs_of_older_tags_read_as_todays_do(tmp_path):
    """Their curves, written anew in sub-runs, are the same curves."""
    curves = read_curves(SHIPPED / "healthy")
    named = {name: name_of(name) for name in curves}
    assert {stream for _, stream in named.values()} == {None, *STREAMS}
    old = [pattern for pattern in RENAMED if any(re.fullmatch(pattern, tag) for tag, _ in named.values())]
    assert old == []
    for name, (tag, stream) in named.items():
        with SummaryWriter(tmp_path / (stream or "")) as writer:
            for step, value in zip(*curves[name], strict=True):
                writer.add_scalar(tag, value, step)
    again = read_curves(tmp_path)
    assert again.keys() == curves.keys()
    for name, curve in curves.items():
        assert again[name].steps.tolist() == curve.steps.tolist()
        assert again[name].values.tolist() == curve.values.tolist()
