"""The judge reads while the model computes; what it fails to give stops every rank."""

import copy
from threading import Event

import pytest

from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import Pretrained
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.toy import RuleJudge
from ivgr.toy.world import World, draw_samples
from ivgr.trainer.loss import PolicyLossConfig
from ivgr.trainer.policy_update import PolicyUpdate
from ivgr.trainer.reference import FrozenReference
from ivgr.trainer.rl_step import RLStep
from ivgr.trainer.update_config import UpdateConfig
from support.one_rank import OneRank


@pytest.fixture(scope="module")
def tiny():
    return Pretrained("tiny").load()


class Run:
    """An iteration of two updates whose optimizer only counts its steps."""

    def __init__(self, tiny, judge):
        policy, processor = copy.deepcopy(tiny[0]).eval(), tiny[1]
        self.steps = 0
        engine = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=60))
        update = PolicyUpdate(
            policy=policy,
            reference=FrozenReference().load(policy),
            config=UpdateConfig(loss=PolicyLossConfig(), mini_batches=2, token_budget=10**9),
            stepper=OneRank(self.step),
            temperature=engine.sampling.temperature,
        )
        self.iteration = RLStep(
            policy=policy,
            tokenizer=processor.tokenizer,
            engine=engine,
            scorer=Scorer(Rewards(), judge),
            update=update,
        )
        encoder = QueryEncoder(processor, "qwen2_vl", Prompts())
        self.queries = [encoder(sample) for sample in draw_samples(World("train", 6, seed=9))]

    def step(self):
        self.steps += 1
        self.iteration.policy.zero_grad()
        return 0.0


class WaitingJudge(RuleJudge):
    """Gives no verdict before the model has begun the pass that may run beside it."""

    def __init__(self):
        self.begun = {"reference": Event(), "policy": Event()}

    def agree(self, questions):
        assert self.begun["reference"].wait(30)
        return super().agree(questions)

    def compare(self, comparisons):
        self.begun["policy"].clear()
        assert self.begun["policy"].wait(30)
        return super().compare(comparisons)


def test_both_batches_are_judged_beside_the_models_passes(tiny):
    judge = WaitingJudge()
    run, plain = Run(tiny, judge), Run(tiny, RuleJudge())
    update = run.iteration.update
    for name, model in (("reference", update.reference.model), ("policy", update.policy)):
        event = judge.begun[name]
        model.model.register_forward_hook(lambda *_, event=event: event.set())
    metrics, expected = (each.iteration.run(each.queries, seed=4) for each in (run, plain))
    assert run.steps == 2 and metrics["time/judge_wait"] >= 0
    assert {k: v for k, v in metrics.items() if "time" not in k and "per_s" not in k} == {
        k: v for k, v in expected.items() if "time" not in k and "per_s" not in k
    }


class SilentJudge(RuleJudge):
    """Leaves out every verdict on reasoning."""

    def compare(self, comparisons):
        return [None] * len(comparisons)


def test_missing_verdicts_give_no_advantage_but_the_update_goes_on(tiny):
    run = Run(tiny, SilentJudge())
    metrics = run.iteration.run(run.queries, seed=4)
    missing = [rollout for rollout in rollouts_of(run.queries) if rollout.reward is None]
    groups = [group for query in run.queries for group in query.groups]
    without = [g for g in groups if sum(rollout.reward is not None for rollout in g.rollouts) < 2]
    assert missing and all(rollout.advantage == 0.0 for rollout in missing)
    assert metrics["advantage/groups_without"] == len(without) > 0
    assert 0 < metrics["judge/missing_share"] <= 1 and run.steps == 2
    assert metrics["textual/reward/accuracy/mean"] <= 1.0


class BrokenJudge(RuleJudge):
    """Stops the run at the chosen question."""

    def __init__(self, question):
        setattr(self, question, self.stop)

    def stop(self, questions):
        raise UserError("judge: gone")


@pytest.mark.parametrize("question", ["agree", "compare"])
def test_a_judge_that_gives_up_stops_the_run_before_any_update(tiny, question):
    run = Run(tiny, BrokenJudge(question))
    with pytest.raises(UserError, match="judge: gone"):
        run.iteration.run(run.queries, seed=4)
    assert run.steps == 0


def test_another_ranks_judge_stops_this_rank_too(tiny, monkeypatch):
    run = Run(tiny, RuleJudge())
    monkeypatch.setattr("ivgr.rewards.scorer.gather", lambda own: [own, "it fell silent"])
    with pytest.raises(UserError, match="judge of rank 1 .* it fell silent"):
        run.iteration.run(run.queries, seed=4)
    assert run.steps == 0
