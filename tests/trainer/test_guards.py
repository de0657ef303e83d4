"""What an update does when numbers are not finite, memory runs out, or an engine hangs."""

import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.query import rollouts_of
from ivgr.judge import RulesAlone
from ivgr.judge.judge_timeout import with_judge_timeout
from ivgr.kernels import TokenStatistics
from ivgr.packing.prefix_tree import Pack, split_tree, tree_length
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy import RuleJudge
from ivgr.trainer.nonfinite_guard import GuardConfig, NonFiniteGuard
from support.checkpoints import CONFIG, SMALL
from support.one_iteration import Run

FINE, BAD = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])


def watched(logp=FINE, loss=0.0, guard=None):
    guard = guard or NonFiniteGuard(patience=2)
    guard.watch(TokenStatistics(logp, loss=torch.tensor(loss)))
    return guard


def admits(guard, norm=1.0, policy=None, sum_ranks=lambda value: value):
    return guard.admits(norm, policy or nn.Linear(1, 1), 0.5, sum_ranks)


@pytest.mark.parametrize(
    ("logp", "loss", "norm", "fault"),
    [
        (BAD, math.nan, math.nan, "the policy's logits are not finite"),
        (FINE, math.inf, math.nan, r"the loss is \(the logits are finite\) not finite"),
        (FINE, 0.0, math.inf, r"a gradient is \(the loss is finite\) not finite"),
    ],
)
def test_the_diagnosis_names_the_first_fault_and_the_first_gradient(logp, loss, norm, fault):
    policy = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    policy(torch.ones(1, 2)).sum().backward()
    policy[1].weight.grad[0, 0] = math.nan
    guard = watched()
    assert admits(guard, 7.25, policy)
    assert not admits(watched(logp, loss, guard), norm, policy)
    with pytest.raises(UserError, match=fault) as error:
        admits(watched(logp, loss, guard), norm, policy)
    for part in ("2 updates in a row", "1.weight", "learning rate 0.5", "before: 7.25"):
        assert part in str(error.value)


def test_only_skips_in_a_row_count_towards_patience():
    guard = NonFiniteGuard(patience=2)
    assert [admits(watched(guard=guard), norm) for norm in (math.nan, 1.0, math.inf, 2.0)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert guard.skipped == 2


def test_another_ranks_fault_skips_here_too():
    guard = watched()
    assert not admits(guard, sum_ranks=lambda value: value + 1)
    with pytest.raises(UserError, match="another rank"):
        admits(guard, sum_ranks=lambda value: value + 1)


def fit(root, *options):
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    main(["fit", "--config", str(CONFIG), *words, "--trainer.default_root_dir", str(root), *options])


class Spoilt:
    """Advantages whose sign is the rollout's, those of chosen iterations not finite."""

    def __init__(self, *iterations):
        self.iterations, self.now = iterations, 0

    def __call__(self, queries):
        self.now += 1
        for index, rollout in enumerate(rollouts_of(queries)):
            rollout.advantage = math.nan if self.now in self.iterations else 1.0 - 2.0 * (index % 2)


def weights(root):
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.slow
def test_a_skipped_update_leaves_the_weights_and_moves_the_schedule(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("ivgr.trainer.rl_step.assign_advantages", Spoilt(2, 3))
    board = "ivgr.callbacks.metrics_logger.MetricsLogger.on_train_batch_end"
    monkeypatch.setattr(board, lambda self, trainer, module, *_: (
        seen.append((module.metrics["guard/skipped"], module.metrics["optim/lr"]))
    ))  # fmt: skip
    options = ("--model.update.schedule.name", "cosine", "--model.update.mini_batches", "1")
    fit(tmp_path / "skipping", *options)
    skipping = list(seen)
    assert [skipped for skipped, _ in skipping] == [0, 1, 2]
    monkeypatch.setattr("ivgr.trainer.rl_step.assign_advantages", Spoilt())
    fit(tmp_path / "plain", *options)
    assert [rate for _, rate in seen[3:]] == [rate for _, rate in skipping]
    monkeypatch.setattr("ivgr.trainer.rl_step.assign_advantages", Spoilt())
    fit(tmp_path / "one", *options, "--trainer.max_steps", "1")
    one, both, skipped = (weights(tmp_path / name) for name in ("one", "plain", "skipping"))
    assert skipped["ivgr"]["skipped"] == 2 and skipped["global_step"] == 1
    for name, value in one["state_dict"].items():
        assert torch.equal(value, skipped["state_dict"][name])
    assert any(not torch.equal(v, skipped["state_dict"][name]) for name, v in both["state_dict"].items())


def test_a_run_that_only_skips_ends_in_one_line_and_keeps_its_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ivgr.trainer.rl_step.assign_advantages", Spoilt(2, 3))
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, "--model.guard.patience", "2")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "2 updates in a row" in error and "the loss is" in error and "--ckpt_path last" in error
    assert all(value.isfinite().all() for value in weights(tmp_path)["state_dict"].values())


LIMIT = 1500  # tokens


@pytest.fixture
def small_memory(monkeypatch):
    """Memory runs out in passes over more than so many tokens: in the forward pass without
    gradient, on the way back with it, when part of the gradients is there already."""
    limit = {"tokens": 1 << 40}
    hidden = Pack.hidden

    def refuse(gradient):
        raise torch.OutOfMemoryError("fake")

    def fake(self, model, **options):
        found = hidden(self, model, **options)
        if self.ids.numel() > limit["tokens"] and options.get("tree_cache") is None:
            if not found.requires_grad:
                refuse(None)
            model.model.language_model.layers[1].mlp.down_proj.weight.register_hook(refuse)
        return found

    monkeypatch.setattr(Pack, "hidden", fake)
    return limit


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_packs_too_large_for_memory_are_split_with_the_same_gradients(tiny, small_memory, layout):
    run = Run(tiny)
    update = run.iteration.update
    update.config = replace(update.config, layout=layout)
    assert run.metrics["guard/token_budget"] == 10**9
    whole = run.gradients.pop()
    small_memory["tokens"] = LIMIT
    packs = update.pack(run.queries)
    assert len(packs[0]) == 1 and packs[0][0].ids.numel() > LIMIT
    figures = update.run(packs)
    assert (run.gradients.pop() - whole).abs().max() < 1e-6 < whole.abs().max() / 1e3
    budget = figures["guard/token_budget"]
    assert LIMIT / 4 < budget <= LIMIT and all(pack.ids.numel() <= LIMIT for pack in packs[0])
    assert figures["policy/kl"] == pytest.approx(run.metrics["policy/kl"], abs=1e-7)
    assert figures["optim/loss"] == pytest.approx(run.metrics["optim/loss"], abs=1e-6)
    assert all(pack.ids.numel() <= LIMIT for pack in update.pack(run.queries)[0])  # for the rest of the run


@pytest.mark.parametrize("asked", [True, False])
def test_a_tree_too_long_for_budget_or_memory_is_split_with_the_same_gradients(tiny, small_memory, asked):
    run = Run(tiny)
    update, whole = run.iteration.update, run.gradients.pop()
    limit = max(tree_length(row) for query in run.queries for row in split_tree(query, 0))
    assert limit < max(map(tree_length, run.queries))
    if asked:
        update.micro_batcher.token_budget = limit
    small_memory["tokens"] = limit
    figures = update.run(packs := update.pack(run.queries))
    assert update.micro_batcher.token_budget == limit or not asked
    assert all(pack.ids.numel() <= limit for pack in packs[0])
    assert [id(one) for pack in packs[0] for one in pack.rollouts] == list(map(id, rollouts_of(run.queries)))
    assert (run.gradients.pop() - whole).abs().max() < 1e-6 < whole.abs().max() / 1e3
    assert figures["policy/kl"] == pytest.approx(run.metrics["policy/kl"], abs=1e-7)
    assert figures["optim/loss"] == pytest.approx(run.metrics["optim/loss"], abs=1e-6)


def test_a_break_on_the_way_back_leaves_no_trace(tiny, small_memory):
    """The scoring pass is done already, so that memory runs out with gradient only."""
    run = Run(tiny, updates=1)
    update, whole = run.iteration.update, run.gradients.pop()
    packs = update.pack(run.queries)
    update.infer_reference(packs)
    small_memory["tokens"] = LIMIT
    tried = []
    zero_grad = update.policy.zero_grad
    update.policy.zero_grad = lambda: (
        tried.append(sum(p.grad is not None for p in update.policy.parameters())),
        [p._backward_hooks.clear() for p in update.policy.parameters() if p._backward_hooks],
        zero_grad(),
    )
    update.run(packs)
    assert tried[0] > 0  # a part of the gradients had been made
    assert (run.gradients.pop() - whole).abs().max() < 1e-6


def test_one_response_that_does_not_fit_names_the_settings(tiny, small_memory):
    run = Run(tiny)
    small_memory["tokens"] = 20
    with pytest.raises(UserError, match="model.trainable.gradient_checkpointing true, or lower model.engine"):
        run.iteration.update.run(run.iteration.update.pack(run.queries))


class Hung(TransformersEngine):
    """Waits for what never comes."""

    def roll_out(self, *arguments):
        threading.Event().wait()

    def answer(self, *arguments):
        raise TimeoutError("its own")


def test_a_hung_engine_ends_in_time(tiny):
    engine, start = TimeoutEngine(Hung(), 0.2), time.monotonic()
    assert engine.sampling.temperature == 1.0
    with pytest.raises(UserError, match=r"0.2 seconds \(model.guard.engine_timeout\)"):
        engine.roll_out(tiny[0], tiny[1].tokenizer, [], 0)
    assert time.monotonic() - start < 5
    with pytest.raises(TimeoutError, match="its own"):
        engine.answer(tiny[0], tiny[1].tokenizer, [])


def test_a_patient_engine_gives_what_the_engine_gives(tiny):
    own = TransformersEngine(SamplingConfig(group_size=2, max_new_tokens=8))
    texts = []
    for engine in (own, TimeoutEngine(own, 60)):
        queries = [query for query in Run(tiny).queries[:2]]
        for group in (group for query in queries for group in query.groups):
            group.rollouts.clear()
        engine.roll_out(tiny[0], tiny[1].tokenizer, queries, 3)
        texts.append([rollout.text for rollout in rollouts_of(queries)])
    assert texts[0] == texts[1] and len(texts[0]) > 4


class HungJudge(RuleJudge):
    """Never says how well descriptions agree."""

    known = "tiny"

    def compare(self, comparisons):
        threading.Event().wait()


def test_a_hung_judge_ends_in_time_and_is_else_itself():
    judge = with_judge_timeout(HungJudge(), 0.2)
    with pytest.raises(UserError, match=r"HungJudge has not .* 0.2 seconds \(model.guard.judge_timeout\)"):
        judge.compare([])
    assert judge.agree([]) == [] and judge.known == "tiny" and not hasattr(judge, "report")
    assert isinstance(with_judge_timeout(RulesAlone(), 0.2), RulesAlone)


def test_impossible_guards_are_refused():
    for settings in ({"patience": 0}, {"engine_timeout": 0.0}, {"judge_timeout": 0.0}):
        with pytest.raises(UserError, match="model.guard"):
            GuardConfig(**settings)
