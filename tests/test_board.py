"""What a run writes for TensorBoard, read back from its event file."""

import json
import re

import numpy as np
import pytest
from conftest import make_query, make_rollout, make_sample, response
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from ivgr.cli import main
from ivgr.errors import UserError
from ivgr.watch.board import completions_table
from ivgr.watch.charts import Symptom, average, draw_charts, draw_shares, draw_symptoms
from ivgr.watch.curves import read_curves, thin_events
from ivgr.watch.hparams import METRICS, flat_settings
from ivgr.watch.layout import CHARTS, LEVELS, STACK, stack_shares

SMALL = (
    "--data.train_count 100 --data.val_count 60 --data.val_queries 8 --data.prompts 8 --model.iterations 2"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations of the README's run, small."""
    root = tmp_path_factory.mktemp("board")
    words = f"fit --config configs/tiny.yaml --trainer.default_root_dir {root} --model.optimizer.lr 1e-4"
    main([*words.split(), *SMALL.split()])
    return root


@pytest.fixture(scope="module")
def board(run):
    """The event file as TensorBoard itself reads it."""
    return EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()


def layout_of(board):
    (event,) = board.Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def test_every_chart_of_the_layout_shows_something(board):
    written = board.Tags()["scalars"]
    charts = [chart for category in layout_of(board).category for chart in category.chart]
    assert len(charts) == sum(map(len, CHARTS.values())) + 1
    for chart in charts:
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in written), (chart.title, pattern)
        for band in chart.margin.series:
            assert {band.value, band.lower, band.upper} <= set(written)


def test_the_streams_lie_in_one_chart(board):
    (category,) = [c for c in layout_of(board).category if c.title == "Both streams"]
    for chart in category.chart:
        found = [tag for tag in board.Tags()["scalars"] if re.match(chart.multiline.tag[0], tag)]
        assert {"grounded", "textual"} <= {tag.split("/")[0] for tag in found}, chart.title


def test_the_bands_of_the_stack_are_the_shares(board):
    (chart,) = [c for category in layout_of(board).category for c in category.chart if c.title == STACK]
    bands = [
        np.array([upper.value - lower.value for lower, upper in zip(*pair, strict=True)])
        for pair in ((board.Scalars(s.lower), board.Scalars(s.upper)) for s in chart.margin.series)
    ]
    shares = [[e.value for e in board.Scalars(f"consistency/share_{s}")] for s in ("0", "0.3", "0.7", "1")]
    assert np.allclose(bands, shares, atol=1e-6)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_borders_of_the_stack_rise_from_zero_by_each_share(shares):
    names = ("0", "0.3", "0.7", "1")
    metrics = {f"consistency/share_{name}": share for name, share in zip(names, shares, strict=True)}
    borders = stack_shares(metrics)
    assert list(borders) == LEVELS and borders[LEVELS[0]] == 0
    assert np.allclose(np.diff(list(borders.values())), shares)
    assert stack_shares({"policy/kl": 0.0}) == {}


def test_hyperparameters_stand_beside_the_figures_that_summary_json_has(run, board):
    contents = board.PluginTagToContent(metadata.PLUGIN_NAME)
    started = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    compared = metadata.parse_experiment_plugin_data(contents[metadata.EXPERIMENT_TAG])
    metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert started.hparams["model.optimizer.lr"].number_value == 1e-4
    assert started.hparams["model.policy"].string_value == "tiny"
    assert started.hparams["model.judge"].string_value == "ivgr.judge.RuleJudge"
    assert {info.name for info in compared.hparam_infos} == set(started.hparams)
    assert [info.name.tag for info in compared.metric_infos] == METRICS
    summary = json.loads((run / "summary.json").read_text())
    for stream, figures in summary["after"].items():
        for name, value in figures.items():
            curve = read_curves(run)[f"val/{stream}/{name}"]
            assert curve.values[-1] == pytest.approx(value) and curve.steps[-1] == 2
            assert curve.values[0] == pytest.approx(summary["before"][stream][name]) and curve.steps[0] == 0


def test_settings_are_named_as_on_the_command_line():
    judge = {"class_path": "a.Judge", "init_args": {"path": None, "times": 3}}
    config = {"seed_everything": 7, "model": {"judge": judge, "freeze": ["vision"], "flag": True}, "data": {}}
    assert flat_settings(config) == {
        "seed_everything": 7,
        "model.judge": "a.Judge",
        "model.judge.path": "null",
        "model.judge.times": 3,
        "model.freeze": '["vision"]',
        "model.flag": "true",
        "data": "{}",
    }


def test_completions_and_boxes_are_written(board):
    table = board.Tensors("completions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert (
        table.startswith("| query | stream | reward") and "| grounded |" in table and "| textual |" in table
    )
    (picture, *_) = board.Images(board.Tags()["images"][0])
    assert picture.height == 280 and picture.width % 280 == 0


def test_a_completion_shows_its_terms_and_cannot_break_the_table():
    rollout = make_rollout(response("a | b <b>", "red"), format=1.0, accuracy=0.0, box=0.625)
    rollout.reward = 1.625
    (_, _, row, _) = completions_table([make_query(make_sample(), grounded=[rollout])]).split("\n")
    assert row.count("|") == 7 and "<b>" not in row
    assert "format 1, accuracy 0, box 0.62" in row


def write_events(folder, values, suffix=""):
    writer = SummaryWriter(folder, filename_suffix=suffix)
    for tag, points in values.items():
        for step, value in points:
            writer.add_scalar(tag, value, step)
    writer.close()


def test_curves_are_what_was_written_and_a_restart_replaces(tmp_path):
    write_events(tmp_path / "a", {"x": [(0, 1.5), (1, 2.5), (2, 3.5)], "y/z": [(5, -1.0)]})
    curves = read_curves(tmp_path / "a")
    assert curves["x"].steps.tolist() == [0, 1, 2] and curves["x"].values.tolist() == [1.5, 2.5, 3.5]
    assert curves["y/z"].values.tolist() == [-1.0]
    (first,) = (tmp_path / "a").iterdir()
    first.rename(first.with_name("events.out.tfevents.0000000001.host"))
    write_events(tmp_path / "a", {"x": [(2, 9.0), (3, 4.5)]})
    assert read_curves(tmp_path / "a")["x"].values.tolist() == [1.5, 2.5, 9.0, 4.5]


def test_a_thinned_file_holds_the_chosen_scalars_alone(tmp_path, run):
    write_events(tmp_path / "a", {tag: [(n, n / 2) for n in range(20)] for tag in ("keep/a", "keep/b", "no")})
    thin_events(tmp_path / "a", tmp_path / "thin.tfevents", "keep/.*", every=5)
    curves = read_curves(tmp_path / "thin.tfevents")
    assert set(curves) == {"keep/a", "keep/b"}
    assert curves["keep/a"].steps.tolist() == [0, 1, 5, 10, 15]
    assert EventAccumulator(str(tmp_path)).Reload().Scalars("keep/a")[-1].value == 7.5


def test_a_torn_file_gives_what_is_whole(tmp_path):
    write_events(tmp_path / "a", {"x": [(n, n) for n in range(50)]})
    (file,) = (tmp_path / "a").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert read_curves(file)["x"].values.tolist() == list(range(49))


@pytest.mark.parametrize("make", ["nothing", "folder", "empty"])
def test_what_holds_no_curve_is_said_in_one_line(tmp_path, make):
    path = tmp_path / make
    if make == "folder":
        path.mkdir()
    if make == "empty":
        write_events(path, {})
    with pytest.raises(UserError, match=re.escape(str(path))):
        read_curves(path)


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30), st.integers(1, 12))
def test_average_is_the_mean_of_the_neighbours(values, window):
    before, after = window - 1 - (window - 1) // 2, (window - 1) // 2
    wanted = [np.mean(values[max(i - before, 0) : i + after + 1]) for i in range(len(values))]
    assert np.allclose(average(np.array(values), window), wanted, atol=1e-9)


def test_figures_show_the_curves(run):
    curves = read_curves(run)
    figure = draw_charts(curves, "Both streams", window=1)
    titles = [panel.get_title() for panel in figure.axes if panel.lines]
    assert titles == list(CHARTS["Both streams"])
    entropy = figure.axes[titles.index("entropy, nats")]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in entropy.lines}
    assert drawn["textual"] == curves["textual/policy/entropy"].values.tolist()
    assert {"grounded", "textual"} <= set(drawn)
    bands = draw_shares(curves).axes[0].collections
    assert len(bands) == 4
    symptom = Symptom("sick", "rate x 100", "policy/kl", "KL")
    (panel,) = draw_symptoms({"healthy": curves, "sick": curves}, "healthy", [symptom]).axes
    assert [line.get_label() for line in panel.lines] == ["healthy", "rate x 100"]
