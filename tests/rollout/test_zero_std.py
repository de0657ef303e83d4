"""Groups without variance: found, rolled out again within bounds, left out of the update."""

import copy
from itertools import chain

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ivgr.core.query import Group, rollouts_of
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.archive import Archive
from ivgr.rollout.zero_std import (
    frac_zero_std,
    has_zero_std,
    resample_zero_std,
    without_zero_std,
    zero_std_groups,
)
from ivgr.trainer.optimizer import sum_gradients
from support.one_iteration import Run
from support.samples import make_query, make_rollout, make_sample, response
from support.scored import score

rewards_of_group = st.lists(st.sampled_from([0.0, 0.3, 1.0, 2.0]), min_size=2, max_size=4)
batches = st.lists(
    st.dictionaries(st.sampled_from(["grounded", "textual"]), rewards_of_group, min_size=1), min_size=1
)


def rolled(reward):
    rollout = make_rollout("")
    rollout.reward = reward
    return rollout


def make_batch(batch):
    rolled_out = [{stream: map(rolled, rewards) for stream, rewards in groups.items()} for groups in batch]
    return [make_query(make_sample(str(i)), **groups) for i, groups in enumerate(rolled_out)]


def rewards_of(queries):
    return [[[r.reward for r in group.rollouts] for group in query.groups] for query in queries]


class Dice:
    """Gives each group of n rollouts the next rewards of a script, by how often it was asked."""

    def __init__(self, script=lambda number, query, group: [0.0, 0.0]):
        self.script, self.calls, self.scored, self.seeds = script, [], [], []

    def roll_out(self, queries, seed):
        self.seeds.append(seed)
        self.calls.append([(query.sample.id, group.stream) for query in queries for group in query.groups])
        for query in queries:
            for group in query.groups:
                assert group.rollouts == []
                rewards = self.script(len(self.calls), query, group)
                group.rollouts += map(rolled, rewards)

    def resample(self, queries, rounds, seed=5, sum_ranks=lambda value: value):
        return resample_zero_std(queries, rounds, seed, self.roll_out, self.scored.append, sum_ranks)


@given(batches)
def test_flat_groups_are_those_whose_rewards_are_all_equal(batch):
    queries = make_batch(batch)
    groups = list(chain.from_iterable(groups.items() for groups in batch))
    flat = [rewards for _, rewards in groups if min(rewards) == max(rewards)]
    assert [[r.reward for r in group.rollouts] for group in zero_std_groups(queries)] == flat
    assert frac_zero_std(queries) == len(flat) / len(groups)
    left = [[list(r) for r in g.values() if min(r) < max(r)] for g in batch]
    assert rewards_of(without_zero_std(queries)) == [groups for groups in left if groups]


@pytest.mark.parametrize(
    ("rewards", "flat"), [([1.0, None, 1.0], True), ([1.0, None, 0.0], False), ([None, None], False)]
)
def test_unknown_rewards_do_not_make_a_group_vary(rewards, flat):
    assert bool(zero_std_groups(make_batch([{"textual": rewards}]))) == flat


@given(batches, st.integers(0, 4))
def test_only_flat_groups_are_rolled_out_again_and_at_most_so_often(batch, rounds):
    queries, dice = make_batch(batch), Dice()
    groups = [(query.sample.id, group) for query in queries for group in query.groups]
    before = [(group, list(map(id, group.rollouts))) for _, group in groups if not has_zero_std(group)]
    flat = [(name, group.stream) for name, group in groups if has_zero_std(group)]
    figures = dice.resample(queries, rounds)
    assert dice.calls == [flat] * rounds if flat else dice.calls == []
    assert all(list(map(id, group.rollouts)) == rollouts for group, rollouts in before)
    assert len(set(dice.seeds)) == len(dice.seeds) and 5 not in dice.seeds
    assert figures["advantage/flat_share_before"] == figures["advantage/flat_share_after"]
    assert figures["rollout/resampled"] == len(flat) * rounds


def test_a_group_that_varies_is_left_in_peace():
    """The first group varies at once, the second in round 2, the third never."""
    queries = make_batch([{"grounded": [1.0, 1.0], "textual": [0.0, 0.0]}, {"textual": [2.0, 2.0]}])

    def draw(round, query, group):
        varies = group.stream == "grounded" or (round == 2 and query.sample.id == "0")
        return [round, 9.0 if varies else round]

    dice = Dice(draw)
    figures = dice.resample(queries, 3)
    first, second, third = ("0", "grounded"), ("0", "textual"), ("1", "textual")
    assert dice.calls == [[first, second, third], [second, third], [third]]
    assert rewards_of(queries) == [[[1, 9.0], [2, 9.0]], [[3, 3]]]
    assert figures == {
        "advantage/flat_share_before": 1.0,
        "advantage/flat_share_after": pytest.approx(1 / 3),
        "rollout/resampled": 6.0,
    }
    assert [len(scored) for scored in dice.scored] == [2, 2, 1]


def test_seeds_follow_from_the_runs_own():
    dice = [Dice() for _ in range(3)]
    for one, seed in zip(dice, (5, 5, 6), strict=True):
        one.resample(make_batch([{"textual": [1.0, 1.0]}]), 3, seed)
    assert dice[0].seeds == dice[1].seeds and not set(dice[0].seeds) & set(dice[2].seeds)


def test_a_rank_without_flat_groups_takes_part_while_another_has_some():
    dice, others = Dice(), iter([3, 1, 0])
    queries = make_batch([{"textual": [0.0, 1.0]}])
    dice.resample(queries, 5, sum_ranks=lambda mine: mine + next(others))
    assert dice.calls == [[], []] and dice.scored == [[], []] and rewards_of(queries) == [[[0.0, 1.0]]]


@pytest.mark.parametrize("persistent", [True, False])
def test_resampled_text_is_compared_with_what_the_iteration_has_found(persistent):
    """The grounded group varies and stays; the textual one is drawn and scored again."""
    good, worse = (f"The cross is at <box>[{left},100,300,300]</box>." for left in (100, 150))
    query = make_query(
        make_sample(),
        grounded=[make_rollout(response(good)), make_rollout(response(worse))],
        textual=[make_rollout(response("It is.")) for _ in range(2)],
    )
    archive = Archive(persistent=persistent)

    def reward(queries):
        score(*queries, judge=Words(), archive=archive)

    reward([query])

    def roll_out(queries, seed):
        for fresh in queries:
            assert [group.stream for group in fresh.groups] == ["textual"]
            fresh.groups[0].rollouts += [make_rollout(response(t)) for t in ("It is.", good[:10])]

    with archive.accumulate():
        resample_zero_std([query], 2, 0, roll_out, reward, lambda n: n)
    assert [r.reference for r in query.group("textual").rollouts] == [good, good]
    assert archive.persistent is persistent and len(archive) == 1
    assert frac_zero_std([query]) == 0


class Words:
    """A judge for whom reasoning that is as long as ten letters agrees."""

    def agree(self, questions):
        return [False] * len(questions)

    def compare(self, comparisons):
        return [float(len(comparison.reasoning) == 10) for comparison in comparisons]


@pytest.fixture(scope="module")
def run():
    model, processor = Pretrained("tiny").load()
    run = Run((model.eval(), processor))
    assert len(zero_std_groups(run.queries)) >= 2 and len(without_zero_std(run.queries)) >= 2
    return run


def gradient(run, queries):
    run.gradients.clear()
    update = run.iteration.update
    figures = update.run(update.pack(queries))
    return figures, run.gradients.pop()


def test_dropped_groups_leave_no_trace_in_the_gradient(run):
    """Independently of `without_zero_std`: the groups are taken out by hand."""
    by_hand = copy.deepcopy(run.queries)
    for query in by_hand:
        query.groups = [g for g in query.groups if len({r.reward for r in g.rollouts}) > 1]
    by_hand = [query for query in by_hand if query.groups]
    figures, wanted = gradient(run, by_hand)
    dropped_figures, dropped = gradient(run, without_zero_std(run.queries))
    assert torch.equal(dropped, wanted) and dropped_figures == figures
    _, whole = gradient(run, run.queries)
    assert (whole - wanted).norm() > 1e-3 * wanted.norm()


def test_flat_groups_only_thin_the_gradient_while_the_policy_is_the_reference(run):
    """With zero advantage and zero KL their tokens count in the mean alone."""
    _, dropped = gradient(run, without_zero_std(run.queries))
    _, whole = gradient(run, run.queries)
    left, in_all = (
        sum(len(rollout.tokens) for rollout in rollouts_of(queries))
        for queries in (without_zero_std(run.queries), run.queries)
    )
    assert (whole * in_all / left - dropped).norm() < 1e-4 * dropped.norm()


def test_an_iteration_resamples_and_drops(run):
    iteration = copy.copy(run.iteration)
    iteration.resample, iteration.drop_zero_std, iteration.seconds = 1, True, {}
    queries = copy.deepcopy(run.queries)
    for query in queries:
        query.groups = [Group(group.stream, group.instruction) for group in query.groups]
    figures = iteration.run(queries, seed=4)
    assert figures["rollout/resampled"] == len(zero_std_groups(run.queries))
    assert figures["advantage/flat_share_before"] == frac_zero_std(run.queries)
    assert figures["advantage/flat_share_after"] == frac_zero_std(queries) == figures["reward/frac_zero_std"]
    assert all(len(group.rollouts) == 3 for query in queries for group in query.groups)
    texts = [[r.text for r in g.rollouts] for q in queries for g in q.groups]
    for again, before in zip(texts, (g for q in run.queries for g in q.groups), strict=True):
        if not has_zero_std(before):
            assert again == [r.text for r in before.rollouts]
    assert texts != [[r.text for r in g.rollouts] for q in run.queries for g in q.groups]


def test_an_iteration_of_flat_groups_only_makes_no_step(run):
    run.gradients.clear()
    update = run.iteration.update
    figures = update.run(update.pack([]))
    assert figures["optim/grad_norm"] == 0 and "optim/loss" not in figures
    assert run.gradients == []


def add_gradients(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    parameters = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    parameters[3].requires_grad_(False)
    if rank == 0:
        parameters[0].grad = torch.tensor([1.0, 2.0])
    parameters[1].grad = torch.tensor([3.0, 4.0])
    sum_gradients(parameters)
    torch.save([parameter.grad for parameter in parameters], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_rank_without_gradients_does_not_stop_the_others(tmp_path):
    fork = torch.multiprocessing.get_context("fork")
    ranks = [fork.Process(target=add_gradients, args=(rank, tmp_path)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    for rank in (0, 1):
        summed = torch.load(tmp_path / f"{rank}.pt")
        assert [g if g is None else g.tolist() for g in summed] == [[1.0, 2.0], [6.0, 8.0], None, None]
