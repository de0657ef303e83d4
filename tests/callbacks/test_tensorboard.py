"""What a run writes for TensorBoard, read back from its event files."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.backend_context import Context
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from ivgr.callbacks.hparams import flat_settings
from ivgr.callbacks.metrics_logger import LEGEND, MetricsLogger, caption_of, completions_table
from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import STREAMS
from ivgr.plotting.boxed_picture import GOLD, PREDICTED
from ivgr.plotting.chart_layout import CHARTS
from ivgr.plotting.charts import Symptom, average, draw_charts, draw_shares, draw_symptoms
from ivgr.plotting.event_files import read_curves
from ivgr.plotting.share_stack import SHADES, paint_shares
from ivgr.plotting.tags import OWN
from ivgr.rewards.box_terms import box_reward
from support.samples import make_query, make_rollout, make_sample, response

SMALL = (
    "--data.train_count 100 --data.val_count 60 --data.val_queries 8 --data.prompts 8 --model.iterations 2 "
    "--data.paired_ratio 0.5"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two iterations of the README's run, small; a table beside TensorBoard."""
    root = tmp_path_factory.mktemp("board")
    words = (
        f"fit --config configs/tiny.yaml --trainer.default_root_dir {root} --model.update.optimizer.lr 1e-4"
    )
    table = f"--trainer.logger lightning.pytorch.loggers.CSVLogger --trainer.logger.save_dir {root}/table"
    main([*words.split(), *SMALL.split(), *table.split()])
    return root


@pytest.fixture(scope="module")
def board(run):
    """The run and its streams' sub-runs as TensorBoard itself reads them, by name; "." is the whole run."""
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    folders = {".": run, **{stream: run / stream for stream in STREAMS}}
    return {name: EventAccumulator(str(folder), sizes).Reload() for name, folder in folders.items()}


@pytest.fixture(scope="module")
def provider(run):
    """What TensorBoard's tabs ask."""
    runs = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    return MultiplexerDataProvider(runs, str(run))


def config_of(run):
    """The resolved configuration."""
    return yaml.safe_load(json.loads((run / "run.json").read_text())["config"])["fit"]


def layout_of(board):
    (event,) = board["."].Tensors("custom_scalars__config__")
    return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])


def matches(board, chart):
    """Run → the tags of a chart in it."""
    (pattern,) = chart.multiline.tag
    found = {
        name: [tag for tag in run.Tags()["scalars"] if re.match(pattern, tag)] for name, run in board.items()
    }
    return {name: tags for name, tags in found.items() if tags}


def test_every_chart_of_the_layout_shows_something(board):
    charts = [chart for category in layout_of(board).category for chart in category.chart]
    assert len(charts) == sum(map(len, CHARTS.values()))
    for chart in charts:
        assert matches(board, chart), chart.title


def test_the_lines_of_a_chart_have_colours_of_their_own(board):
    """TensorBoard colours by run: no chart has two tags of one."""
    for category in layout_of(board).category:
        for chart in category.chart:
            found = matches(board, chart)
            assert all(len(tags) == 1 for tags in found.values()), (chart.title, found)


def test_the_streams_lie_in_one_chart(board):
    (category,) = [c for c in layout_of(board).category if c.title == "Both streams"]
    for chart in category.chart:
        assert {"grounded", "textual"} <= matches(board, chart).keys(), chart.title


def test_streams_are_sub_runs_under_common_tags(board):
    grounded, textual, single = (set(board[stream].Tags()["scalars"]) for stream in STREAMS)
    shared = {"reward/total", "reward/accuracy", "reward/format", "rollout/length", "rollout/kl"}
    assert shared <= grounded & textual & single
    assert "reward/box" in grounded - textual and "reward/consistency" in textual - grounded
    assert {"held_out/accuracy_subset", "held_out/accuracy_whole"} <= grounded & textual
    for name, run in board.items():
        assert not [tag for tag in run.Tags()["scalars"] if set(tag.split("/")) & set(STREAMS)], name


def test_what_matters_is_what_one_sees_first(board):
    tags = sorted(tag for run in board.values() for tag in run.Tags()["scalars"])
    groups = list(dict.fromkeys(tag.partition("/")[0] for tag in tags))
    assert groups[:2] == ["held_out", "reward"]
    assert tags[0] == "held_out/accuracy_subset"


def test_a_table_beside_tensorboard_holds_the_same_figures(run):
    """By STREAM/TAG; the copies that HPARAMS needs are TensorBoard's alone."""
    (path,) = (run / "table").rglob("metrics.csv")
    found = {}
    with path.open() as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            for name, value in row.items():
                if value:
                    found.setdefault(name, {})[step] = pytest.approx(float(value), rel=1e-6)
    curves = read_curves(run)
    assert {name: dict(zip(*curve, strict=True)) for name, curve in curves.items()} == found


def test_every_tag_has_a_description(provider):
    """As the tabs show it beside a chart, a picture or a text."""
    request, described = RequestContext(), {}
    for list_kind, plugin in (
        (provider.list_scalars, "scalars"),
        (provider.list_blob_sequences, "images"),
        (provider.list_tensors, "text"),
    ):
        for series in list_kind(request, experiment_id="", plugin_name=plugin).values():
            described |= {tag: found.description for tag, found in series.items()}
    assert len(described) > 60 and {"rollout/completions", "rollout/boxes/1"} <= described.keys()
    assert {tag for tag, description in described.items() if description in ("", OWN)} == set()


def test_descriptions_stand_where_the_fast_loader_reads_them(run):
    """It reads none beside a number or a picture, but one that comes before alone."""
    for folder in (run, *(run / stream for stream in STREAMS)):
        (file,) = folder.glob("events*")
        first = {}
        for record in RawEventFileLoader(str(file)).Load():
            for value in Event.FromString(record).summary.value:
                first.setdefault(value.tag, value)
        numbers = {tag for tag, value in first.items() if value.metadata.plugin_data.plugin_name == "scalars"}
        assert len(numbers) > 5
        assert all(first[tag].WhichOneof("value") is None for tag in numbers)
        assert not [tag for tag, value in first.items() if value.WhichOneof("value") == "simple_value"]


shares = st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any)


@given(st.lists(shares, min_size=1, max_size=6))
def test_each_score_is_painted_on_its_share_of_the_picture(counts):
    history = [[n / sum(row) for n in row] for row in counts]
    picture = paint_shares(history, (500, 3 * len(history)))
    for index, row in enumerate(history):
        column = picture[:, 3 * index + 1]
        painted = [(column == shade).all(-1) for shade in SHADES]
        assert np.allclose([found.mean() for found in painted], row, atol=1 / 250)
        heights = [np.flatnonzero(found).mean() for found in painted if found.any()]
        assert heights == sorted(heights, reverse=True)


def test_where_nothing_was_compared_the_picture_is_white():
    picture = paint_shares([[0, 0, 0, 1], [0, 0, 0, 0]], (10, 4))
    assert (picture[:, 2:] == 255).all() and (picture[:, :2] == SHADES[3]).all()


def test_the_stack_goes_on_after_a_resume():
    board, resumed = MetricsLogger(), MetricsLogger()
    board.shares = [[0.25, 0.25, 0.5, 0.0]]
    resumed.load_state_dict(board.state_dict())
    assert resumed.shares == board.shares


def test_tensorboard_compares_runs_by_what_differs_and_how_well_they_did(run, tmp_path):
    """Asked as its HPARAMS tab asks: two runs, of which one has another seed."""
    shutil.copytree(run / "held_out", tmp_path / "one" / "held_out")
    other = flat_settings(config_of(run) | {"seed_everything": 5})
    with SummaryWriter(tmp_path / "two" / "held_out") as writer:
        writer.file_writer.add_summary(hparams(other, {})[1])
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(runs, str(tmp_path))
    board, request = Context(base_plugin.TBContext(data_provider=provider)), RequestContext()
    entered = board.hparams_metadata(request, ""), board.hparams_from_data_provider(request, "", 0)
    found = board.experiment_from_metadata(request, "", True, *entered)
    assert [info.name for info in found.hparam_infos if info.differs] == ["seed_everything"]
    assert "model.update.optimizer.lr" in {info.name for info in found.hparam_infos}
    summary = json.loads((run / "summary.json").read_text())
    figures = {f"val/{stream}/{name}" for stream, names in summary["after"].items() for name in names}
    assert {info.name.tag for info in found.metric_infos} == figures


def test_settings_and_figures_are_those_of_the_run(run):
    settings = EventAccumulator(str(run / "held_out")).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    started = metadata.parse_session_start_info_plugin_data(settings[metadata.SESSION_START_INFO_TAG])
    ended = metadata.parse_session_end_info_plugin_data(settings[metadata.SESSION_END_INFO_TAG])
    assert started.hparams["model.update.optimizer.lr"].number_value == 1e-4
    assert started.hparams["model.policy"].string_value == "tiny"
    assert started.hparams["model.judge"].string_value == "ivgr.toy.RuleJudge"
    assert ended.status == Status.Value("STATUS_SUCCESS")
    summary = json.loads((run / "summary.json").read_text())
    beside, curves = read_curves(run / "held_out"), read_curves(run)
    for stream, figures in summary["after"].items():
        for name, value in figures.items():
            own = f"{stream}/held_out/{name}_whole"
            for curve in (beside[own], curves[own]):
                assert curve.values[-1] == pytest.approx(value) and curve.steps[-1] == 2
                assert curve.values[0] == pytest.approx(summary["before"][stream][name])
                assert curve.steps[0] == 0


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
    table = board["."].Tensors("rollout/completions")[0].tensor_proto.string_val[0].decode()
    assert table.startswith("| query | rollout | completion |")
    assert "| grounded: reward" in table and "| textual: reward" in table
    tags = board["grounded"].Tags()["images"]
    assert tags == [f"rollout/boxes/{number}" for number in range(1, len(tags) + 1)] and len(tags) == 2
    pictures = [board["grounded"].Images(tag)[0] for tag in tags]
    pictures += board["."].Images("reward_consistency/shares")
    for picture in pictures:
        assert picture.width >= 512 and picture.encoded_image_string.startswith(b"\x89PNG")


def test_pictures_show_both_boxes(board):
    shown = {GOLD.color: 0, GOLD.edge_color: 0, PREDICTED.color: 0, PREDICTED.edge_color: 0}
    for tag in board["grounded"].Tags()["images"]:
        png = board["grounded"].Images(tag)[0].encoded_image_string
        picture = np.asarray(Image.open(io.BytesIO(png)))
        for color in shown:
            shown[color] += (picture == ImageColor.getrgb(color)).all(-1).sum()
    assert all(count > 1000 for count in shown.values())


def test_a_caption_names_stream_question_answers_and_iou():
    text = "<think>There <box>[10,10,20,20]</box>.</think><answer>red</answer>"
    query = make_query(make_sample(), grounded=[make_rollout(text)])
    query.boxes = [(10, 10, 20, 30)]
    group = query.group("grounded")
    first, question, answer = caption_of(query, group, group.rollouts[0])
    assert first == f"grounded, IoU {box_reward(text, query.boxes):.2f}" and "0.50" in first
    assert query.sample.question in question
    assert answer == f"answer: red (gold: {query.sample.answer})"
    assert "gold" in LEGEND and "predicted" in LEGEND


def test_a_caption_of_a_text_without_answer_says_so():
    query = make_query(make_sample(question="What\x1b[2J " + "now? " * 100), grounded=[make_rollout("?")])
    group = query.group("grounded")
    first, question, answer = caption_of(query, group, group.rollouts[0])
    assert first == "grounded, IoU 0.00" and "none in the answer block" in answer
    assert "\x1b" not in question and len(question) < 220


def test_a_completion_shows_its_terms_and_cannot_break_the_table():
    rollout = make_rollout(response("a | b <b>", "red"), format=1.0, accuracy=0.0, box=0.625)
    rollout.reward = 1.625
    (_, _, row, _) = completions_table([make_query(make_sample(), grounded=[rollout])]).split("\n")
    assert row.count("|") == 4 and "<b>" not in row
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
    assert drawn["textual"] == curves["textual/rollout/entropy"].values.tolist()
    assert {"grounded", "textual"} <= set(drawn)
    bands = draw_shares(curves).axes[0].collections
    assert len(bands) == 4
    symptom = Symptom("sick", "rate x 100", "rollout/kl", "KL")
    (panel,) = draw_symptoms({"healthy": curves, "sick": curves}, "healthy", [symptom]).axes
    assert [line.get_label() for line in panel.lines] == ["healthy", "rate x 100"]
