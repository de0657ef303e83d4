"""One whole iteration on the shipped policy: its invariants and the figures it reports."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import ImageColor

from ivgr.callbacks.metrics_logger import completions_table, draw_query
from ivgr.callbacks.rollout_log import rollout_rows
from ivgr.core.query import rollouts_of
from ivgr.packing.prefix_tree import Pack
from ivgr.plotting.boxed_picture import GOLD
from ivgr.trainer.loss import PolicyLossConfig
from ivgr.trainer.reference import FrozenReference
from support.one_iteration import Run


@pytest.fixture(scope="module")
def run(tiny):
    return Run(tiny)


def test_first_update_has_ratio_one_and_no_divergence(run):
    assert run.metrics["policy/ratio_max"] == 1.0
    assert run.metrics["policy/kl"] == 0.0
    assert run.metrics["rollout/logp_mismatch"] < 1e-4
    assert run.metrics["policy/clip_low"] == run.metrics["policy/clip_high"] == 0


def test_gradients_do_not_depend_on_the_micro_batches(tiny, run):
    for budget in (1, 2000):
        split = Run(tiny, token_budget=budget)
        assert rollout_rows(split.queries) == rollout_rows(run.queries)
        difference = (split.gradients[0] - run.gradients[0]).norm() / run.gradients[0].norm()
        assert difference < 1e-5


def test_exact_kl_and_k3_start_from_the_same_gradient(tiny, run):
    exact = Run(tiny, kl="exact")
    assert (exact.gradients[0] - run.gradients[0]).norm() / run.gradients[0].norm() < 1e-4
    assert exact.metrics["policy/kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kl", ["k3", pytest.param("exact", marks=pytest.mark.slow)])
def test_triton_kernels_give_the_same_update(run, monkeypatch, kl):
    reference = FrozenReference().load(run.policy)
    with reference.inference_model() as model:
        for parameter in model.parameters():
            parameter.mul_(1.02)
    config = replace(run.iteration.update.config, loss=PolicyLossConfig(kl=kl))
    update = replace(run.iteration.update, reference=reference, config=config)
    found = {}
    for implementation in ("torch", "triton"):
        monkeypatch.setenv("IVGR_KERNELS", implementation)
        found[implementation] = update.run(update.pack(run.queries[:2])), run.gradients.pop()
    (figures, gradient), (triton_figures, triton_gradient) = found.values()
    assert figures["policy/kl"] > 1e-4
    assert triton_figures == pytest.approx(figures, rel=1e-5, abs=1e-7)
    assert (triton_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_figures_of_a_stream_are_those_of_an_update_on_it_alone(run):
    reference = FrozenReference().load(run.policy)
    with reference.inference_model() as model:
        for parameter in model.parameters():
            parameter.mul_(1.02)
    update = replace(run.iteration.update, reference=reference)
    figures = update.run(update.pack(run.queries))
    run.gradients.pop()
    for stream in ("grounded", "textual", "single"):
        parts = [replace(q, groups=[g for g in q.groups if g.stream == stream]) for q in run.queries]
        alone = update.run(update.pack([part for part in parts if part.groups]))
        run.gradients.pop()
        for name in ("policy/kl", "policy/entropy"):
            assert figures[f"{stream}/{name}"] == pytest.approx(alone[name], rel=1e-4)
        lengths = [len(rollout.tokens) for rollout in rollouts_of(parts)]
        mean = sum(lengths) / len(lengths)
        assert run.metrics[f"{stream}/rollout/length_mean"] == pytest.approx(mean)


def test_later_updates_leave_the_reference(tiny):
    several = Run(tiny, updates=3, rate=0.05)
    assert len(several.gradients) == 3
    assert several.metrics["policy/ratio_max"] > 1.0
    assert several.metrics["policy/kl"] > 0
    assert several.metrics["rollout/logp_mismatch"] < 1e-4


def test_importance_weighs_each_token_by_what_the_engine_recorded(run):
    """Rollouts recorded as twice as likely as they are count half, under a cap of 2."""
    update = run.iteration.update
    corrected = replace(update, config=replace(update.config, loss=PolicyLossConfig(importance_cap=2.0)))

    def step(update):
        return update.run(update.pack(run.queries[:2])), run.gradients.pop()

    plain = step(update)
    for rollout in rollouts_of(run.queries[:2]):
        rollout.logp += math.log(2)
    try:
        untouched = step(update)
        halved = step(corrected)
    finally:
        for rollout in rollouts_of(run.queries[:2]):
            rollout.logp -= math.log(2)
    assert torch.equal(untouched[1], plain[1]) and untouched[0]["optim/loss"] == plain[0]["optim/loss"]
    assert "policy/importance_mean" not in untouched[0]
    assert (2 * halved[1] - plain[1]).norm() < 1e-4 * plain[1].norm()
    assert halved[0]["policy/importance_mean"] == pytest.approx(0.5, abs=1e-4)
    assert halved[0]["policy/importance_capped"] == 0
    assert halved[0]["rollout/logp_mismatch"] == pytest.approx(math.log(2), abs=1e-4)


def test_mini_batches_differ_by_at_most_one_query(tiny, run):
    four = replace(run.iteration.update, config=replace(run.iteration.update.config, mini_batches=4))
    sizes = [sum(len(p.queries) for p in packs) for packs in four.pack(run.queries)]
    assert sum(sizes) == 10 and max(sizes) - min(sizes) <= 1


def test_figures_equal_a_recount_of_the_record(run):
    rows = rollout_rows(run.queries)
    for stream, terms in {
        "grounded": ("format", "accuracy", "box"),
        "textual": ("format", "accuracy", "consistency"),
        "single": ("format", "accuracy"),
    }.items():
        own = [row for row in rows if row["stream"] == stream]
        for term in terms:
            mean = sum(row["terms"][term] for row in own) / len(own)
            assert run.metrics[f"{stream}/reward/{term}/mean"] == pytest.approx(mean)
        mean = sum(row["reward"] for row in own) / len(own)
        assert run.metrics[f"{stream}/reward/total/mean"] == pytest.approx(mean)
    shares = [run.metrics[f"consistency/share_{score}"] for score in ("0", "0.3", "0.7", "1")]
    assert sum(shares) == pytest.approx(1)
    groups = [rows[i : i + 3] for i in range(0, len(rows), 3)]
    flat = sum(len({row["reward"] for row in group}) == 1 for group in groups) / len(groups)
    assert run.metrics["reward/frac_zero_std"] == pytest.approx(flat)


def test_every_promised_figure_is_there_and_finite(run):
    names = {
        *(f"{s}/reward/{t}/{m}" for s in ("grounded", "textual", "single") for t in ("total", "accuracy")
          for m in ("mean", "std")),
        *(f"policy/{n}" for n in ("kl", "entropy", "clip_low", "clip_high", "ratio_max")),
        *(f"rollout/{n}" for n in ("length_mean", "truncated_frac", "tokens_per_s", "logp_mismatch")),
        *(f"archive/{n}" for n in ("size", "hit_rate", "box_mean")),
        *(f"time/{n}" for n in ("rollout", "reward", "update")),
        "optim/grad_norm", "optim/loss",
    }  # fmt: skip
    assert names <= run.metrics.keys()
    assert all(math.isfinite(value) for value in run.metrics.values())


def test_completions_table_escapes_what_the_model_wrote(run):
    query = copy.copy(next(q for q in run.queries if len(q.groups) == 2))
    query.groups[0].rollouts[0].text = "<script>alert(1)</script> | **bold** \n# head"
    query.groups[0].rollouts[0].reward = 99.0
    table = completions_table([query])
    assert "<script>" not in table and "**bold**" not in table
    assert len(table.splitlines()) == 2 + 2 * len(query.groups)
    assert all(line.count(" | ") == 2 for line in table.splitlines())


def test_drawn_boxes_show_the_gold_box(run):
    query = next(query for query in run.queries if len(query.groups) == 2)
    picture, caption = draw_query(query)
    assert picture.shape[1] == 640 and picture.shape[2] == 3
    assert (picture == ImageColor.getrgb(GOLD.color)).all(-1).any()
    assert caption.startswith("grounded, IoU ") and query.sample.question in caption


def test_rollouts_know_their_reward(run):
    assert all(set(rollout.terms) >= {"format", "accuracy"} for rollout in rollouts_of(run.queries))


def test_the_copy_that_rolled_out_is_freed_before_a_pass_with_gradients(tiny, monkeypatch):
    run = Run(tiny)
    update, seen, hidden = run.iteration.update, [], Pack.hidden
    monkeypatch.setattr(update.stepper, "begin_pass", lambda: seen.append("free"))

    def watched(self, model, **options):
        seen.append("pass" if torch.is_grad_enabled() else "scoring")
        return hidden(self, model, **options)

    monkeypatch.setattr(Pack, "hidden", watched)
    update.run(update.pack(run.queries))
    assert "pass" in seen and all(before == "free" for before, one in pairwise(seen) if one == "pass")
