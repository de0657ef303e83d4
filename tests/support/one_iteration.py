"""One iteration on the shipped policy."""

import copy

import torch

from ivgr.core.prompts import Prompts
from ivgr.data.encode import QueryEncoder
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


class Run:
    """An iteration whose optimizer step is replaced by a record of the gradients."""

    def __init__(self, tiny, updates=1, token_budget=10**9, rate=0.0, **loss):
        self.policy = copy.deepcopy(tiny[0])
        self.gradients, self.rate = [], rate
        engine = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=60))
        update = PolicyUpdate(
            policy=self.policy,
            reference=FrozenReference().load(self.policy),
            config=UpdateConfig(
                loss=PolicyLossConfig(**loss), mini_batches=updates, token_budget=token_budget
            ),
            stepper=OneRank(self._step),
            temperature=engine.sampling.temperature,
        )
        self.iteration = RLStep(
            policy=self.policy,
            tokenizer=tiny[1].tokenizer,
            engine=engine,
            scorer=Scorer(Rewards(), RuleJudge()),
            update=update,
        )
        encoder = QueryEncoder(tiny[1], "qwen2_vl", Prompts())
        self.queries = [encoder(sample) for sample in draw_samples(World("train", 10, seed=9))]
        self.metrics = self.iteration.run(self.queries, seed=4)

    def _step(self):
        gradient = torch.cat([p.grad.flatten() for p in self.policy.parameters() if p.grad is not None])
        self.gradients.append(gradient)
        for parameter in self.policy.parameters():
            if parameter.grad is not None:
                parameter.data -= self.rate * parameter.grad
        self.policy.zero_grad()
        return gradient.norm().item()
