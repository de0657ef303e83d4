"""Held-out figures while a run goes on: how often, of what, and that they leave no trace in it."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.callbacks import subset_validation
from ivgr.callbacks.subset_validation import SubsetValidation, iterations_of
from ivgr.callbacks.validation_summary import evaluate
from ivgr.cli.main import main
from ivgr.plotting.event_files import read_curves
from support.checkpoints import CONFIG, SMALL
from support.contents import contents, differences

ITERATIONS, QUERIES = 6, 2


@given(st.integers(0, 50), st.integers(1, 5000))
def test_points_lie_in_equal_distances_from_the_start_to_the_end(times, iterations):
    found = sorted(iterations_of(times, iterations))
    if not times:
        assert found == []
        return
    assert found[0] == 0 and found[-1] == iterations and len(found) == min(times, iterations) + 1
    gaps = np.diff(found)
    assert gaps.max() - gaps.min() <= 1 or times > iterations


def test_five_times_is_the_default_of_the_shipped_config():
    assert len(iterations_of(5, 150)) == 6


def fit(root, *options):
    settings = SMALL | {"model.iterations": ITERATIONS, "data.val_queries": 3}
    words = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    main(["fit", "--config", str(CONFIG), *words, "--trainer.default_root_dir", str(root), *options])
    return root


def states():
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run; which queries were answered at each time, and whether random numbers were drawn."""
    seen = []

    def watch(module, batches):
        batches, before = list(batches), states()
        figures = evaluate(module, batches)
        seen.append(([query.sample.id for batch in batches for query in batch.queries], before == states()))
        return figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subset_validation, "evaluate", watch)
        root = fit(tmp_path_factory.mktemp("watched"), "--held_out_queries", str(QUERIES))
    return root, seen


def test_each_stream_has_at_least_five_points_of_the_same_few_queries(watched):
    root, seen = watched
    curves = read_curves(root)
    for stream, names in (("grounded", ("accuracy", "iou")), ("textual", ("accuracy", "place_accuracy"))):
        for name in names:
            curve = curves[f"{stream}/held_out/{name}_subset"]
            assert curve.steps.tolist() == [0, 1, 2, 4, 5, 6]
            assert curves[f"{stream}/held_out/{name}_whole"].steps.tolist() == [0, 6]
    asked = {tuple(ids) for ids, _ in seen}
    assert len(seen) == 6 and len(asked) == 1 and len(asked.pop()) == QUERIES


def test_no_random_number_is_drawn_and_the_run_is_what_it_would_have_been(watched, tmp_path):
    root, seen = watched
    assert all(untouched for _, untouched in seen)
    plain = fit(tmp_path, "--held_out_times", "0")
    assert not [name for name in read_curves(plain) if name.endswith("_subset")]
    found = {path: value for path, value in contents(plain).items() if path.startswith("rollouts/")}
    assert len(found) == ITERATIONS
    assert differences(found, {path: contents(root)[path] for path in found}) == []
    last, other = (torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (root, plain))
    for part in ("state_dict", "optimizer_states", "ivgr", "loops"):
        assert differences(last[part], other[part]) == []


def test_the_figures_are_those_of_a_whole_validation_if_the_subset_is_all(tmp_path):
    curves = read_curves(fit(tmp_path, "--held_out_queries", "100", "--model.iterations", "1"))
    subset = {name: curve for name, curve in curves.items() if name.endswith("_subset")}
    assert len(subset) == 8
    for name, curve in subset.items():
        whole = curves[name.replace("_subset", "_whole")]
        assert curve.steps.tolist() == whole.steps.tolist() == [0, 1]
        assert curve.values.tolist() == whole.values.tolist()


@pytest.mark.slow
def test_a_config_with_whole_validations_has_no_subset(tmp_path):
    curves = read_curves(fit(tmp_path, "--trainer.val_check_interval", "2"))
    assert not [name for name in curves if name.endswith("_subset")]
    assert curves["textual/held_out/accuracy_whole"].steps.tolist() == [0, 2, 4, 6]


def test_what_the_judge_reports_is_of_training_alone(monkeypatch):
    asked = []
    judge = SimpleNamespace(report=lambda: asked.append("report"))
    module = SimpleNamespace(iteration=0, iterations=3, judge=judge)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(first_held_out=lambda queries: []))
    monkeypatch.setattr(subset_validation, "evaluate", lambda *_: asked.append("evaluate") or {})
    silent = SimpleNamespace(scalars=lambda *_: None, flush=lambda: None)
    monkeypatch.setattr(subset_validation, "writer_of", lambda _: silent)
    SubsetValidation(3, 2).on_train_batch_start(trainer, module, None, 0)
    assert asked == ["evaluate", "report"]
