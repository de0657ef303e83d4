"""The phases of a real iteration, timed on whole trees and on separate rows.

In: a `Setting`. Out: contenders for `ivgr.tools.bench.measure`.
"""

from dataclasses import replace
from functools import partial

import torch

from ivgr.core.query import Query
from ivgr.core.settings import MOST
from ivgr.models.forward import banned_ids
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import Layout, split_tree, tree_length
from ivgr.rewards.rewards import Rewards
from ivgr.rewards.scorer import Scorer
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.bench.bench_setting import Setting, build_model, build_queries, make_optimizer
from ivgr.tools.bench.measure import Contender
from ivgr.toy import RuleJudge
from ivgr.trainer.loss import PolicyLossConfig
from ivgr.trainer.optimizer_step import OneProcessStep
from ivgr.trainer.policy_update import PolicyUpdate
from ivgr.trainer.reference import FrozenReference
from ivgr.trainer.rl_step import RLStep
from ivgr.trainer.update_config import UpdateConfig

LAYOUTS = ("rows", "tree")
# Queries for every one that is decoded at once, where batches are refilled.
TURNS = 8


def update_contenders(setting: Setting) -> dict[str, Contender]:
    """Reference log-probs, loss, gradients and one optimizer step, in one micro-batch."""
    iteration = build_iteration(setting)
    queries = build_queries(setting, iteration.policy, rollouts=True)
    return {
        layout: Contender(
            iteration.policy,
            partial(_update, with_layout(iteration.update, setting, queries, layout), queries),
            count_tokens(queries, layout),
        )
        for layout in LAYOUTS
    }


def rollout_contenders(setting: Setting) -> dict[str, Contender]:
    """Sampling of responses of forced length, rows with a prefill for every response; and the
    tree's prefill alone, with each response's first token."""
    iteration = build_iteration(setting)
    queries = build_queries(setting, iteration.policy, rollouts=True)
    prefill = build_queries(replace(setting, response=1), iteration.policy, rollouts=True)
    brief = replace(iteration, engine=_engine(setting, limit=1))
    return {
        name: Contender(
            iteration.policy, partial(_roll_out, sampler, setting, layout), count_tokens(responded, layout)
        )
        for name, sampler, layout, responded in (
            ("rows", iteration, "rows", queries),
            ("tree", iteration, "tree", queries),
            ("prefill", brief, "tree", prefill),
        )
    }


def refill_contenders(setting: Setting) -> dict[str, Contender]:
    """Sampling of responses of the setting's lengths, with room for a part of them at once: "tree" takes the
    next query where responses have ended, "static" once all of them have."""
    setting = replace(setting, queries=TURNS * setting.room, response=setting.longest)
    iteration = build_iteration(setting)
    queries = build_queries(setting, iteration.policy, rollouts=True)
    engines = {"static": Lengthy(setting), "tree": Lengthy(setting)}
    engines["static"].refill = False
    return {
        name: Contender(
            iteration.policy,
            partial(_roll_out, replace(iteration, engine=engine), setting, "tree"),
            count_tokens(queries, "tree"),
            engine,
        )
        for name, engine in engines.items()
    }


def build_iteration(setting: Setting) -> RLStep:
    """An iteration of one update on a model of the setting."""
    policy = build_model(setting)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    engine = _engine(setting, setting.response)
    update = PolicyUpdate(
        policy=policy,
        reference=FrozenReference().load(policy),
        config=UpdateConfig(loss=PolicyLossConfig(), mini_batches=1, token_budget=MOST),
        stepper=OneProcessStep(trained, make_optimizer(setting, policy)),
        temperature=engine.sampling.temperature,
    )
    return RLStep(
        policy=policy,
        tokenizer=Pretrained("tiny").load()[1].tokenizer,
        engine=engine,
        scorer=Scorer(Rewards(), RuleJudge()),
        update=update,
    )


class Endless(TransformersEngine):
    """Responses of forced length."""

    def stops(self, *_) -> list[int]:
        return []


class Lengthy(Endless):
    """Responses of the setting's lengths, decoded as many as its room holds at once."""

    def __init__(self, setting: Setting) -> None:
        sampling = SamplingConfig(group_size=setting.group_size, max_new_tokens=setting.response)
        super().__init__(sampling, setting.room, setting.cuda_graphs)
        self.lengths = setting.lengths

    def limits(self, responses: int) -> list[int]:
        longest = self.sampling.max_new_tokens
        if self.lengths == "equal":
            return [longest] * responses
        drawn = torch.empty(responses).geometric_(
            min(4 / longest, 0.99), generator=torch.Generator().manual_seed(0)
        )
        return drawn.long().clamp(max=longest).tolist()


def _engine(setting: Setting, limit: int) -> TransformersEngine:
    return Endless(
        sampling=SamplingConfig(group_size=setting.group_size, max_new_tokens=limit),
        batch_queries=MOST,
        cuda_graphs=setting.cuda_graphs,
    )


def with_layout(update: PolicyUpdate, setting: Setting, queries: list[Query], layout: Layout) -> PolicyUpdate:
    """`update` in `layout`, with micro-batches of `setting.micro_batch` of `queries`."""
    tokens = count_tokens(queries[: setting.micro_batch], layout)
    return replace(update, config=replace(update.config, layout=layout, token_budget=tokens or MOST))


def _update(update: PolicyUpdate, queries: list[Query]) -> None:
    update.run(update.pack(queries))


def _roll_out(iteration: RLStep, setting: Setting, layout: str) -> None:
    policy, copies = iteration.policy, setting.group_size
    prompts = build_queries(setting, policy, rollouts=False)
    if layout == "rows":
        alone = [replace(query, groups=[group]) for query in prompts for group in query.groups]
        prompts, copies = [replace(query) for query in alone for _ in range(copies)], 1
    sampling = Sampling(banned=tuple(banned_ids(policy)))
    iteration.engine.respond(policy, iteration.tokenizer, prompts, sampling, copies, seed=0)


def count_tokens(queries: list[Query], layout: str) -> int:
    """Tokens through the language model: of each tree, or of each response's own row."""
    if layout == "rows":
        queries = [row for query in queries for row in split_tree(query, 0)]
    return sum(map(tree_length, queries))
