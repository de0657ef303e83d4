"""The phases of a real iteration, timed on whole trees and on separate rows.

In: a `Setting`. Out: contenders for `ivgr.bench.measure`.
"""

import sys
from dataclasses import replace
from functools import partial

import torch

from ivgr.archive import Archive
from ivgr.bench.measure import Contender
from ivgr.bench.setting import Setting, build_model, build_queries
from ivgr.iteration import Iteration, Stepper
from ivgr.judge import RuleJudge
from ivgr.loss import PolicyLoss
from ivgr.optim import Optimizer
from ivgr.policy.forward import banned_ids
from ivgr.policy.load import Pretrained
from ivgr.policy.reference import FrozenReference
from ivgr.query import Query, separate
from ivgr.rewards.total import Rewards
from ivgr.rollout.engine import TransformersEngine
from ivgr.rollout.sampling import Sampling
from ivgr.tree import tree_length

LAYOUTS = ("rows", "tree")


def update_contenders(setting: Setting) -> dict[str, Contender]:
    """Reference log-probs, loss, gradients and one optimizer step, in one micro-batch."""
    iteration = build_iteration(setting)
    queries = build_queries(setting, iteration.policy, rollouts=True)
    return {
        layout: Contender(
            iteration.policy,
            partial(replace(iteration, layout=layout).update, queries),
            count_tokens(queries, layout),
        )
        for layout in LAYOUTS
    }


def rollout_contenders(setting: Setting) -> dict[str, Contender]:
    """Sampling of responses of forced length; rows prefill a prompt for every response."""
    iteration = build_iteration(setting)
    iteration.policy.generation_config.eos_token_id = []
    queries = build_queries(setting, iteration.policy, rollouts=True)
    return {
        layout: Contender(
            iteration.policy, partial(_roll_out, iteration, setting, layout), count_tokens(queries, layout)
        )
        for layout in LAYOUTS
    }


def build_iteration(setting: Setting) -> Iteration:
    """An iteration of one update on a model of the setting."""
    policy = build_model(setting)
    optimizer = Optimizer(lr=1e-6).create(policy)

    def step() -> float:
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0).item()
        optimizer.step()
        optimizer.zero_grad()
        return norm

    engine = TransformersEngine(
        group_size=setting.group_size, max_new_tokens=setting.response, batch_queries=sys.maxsize
    )
    return Iteration(
        policy=policy,
        reference=FrozenReference().load(policy),
        tokenizer=Pretrained("tiny").load()[1].tokenizer,
        engine=engine,
        rewards=Rewards(),
        judge=RuleJudge(),
        archive=Archive(),
        loss=PolicyLoss(),
        stepper=Stepper(torch.Tensor.backward, step, lambda value: value),
        updates=1,
        epochs=1,
        token_budget=sys.maxsize,
    )


def _roll_out(iteration: Iteration, setting: Setting, layout: str) -> None:
    policy, copies = iteration.policy, setting.group_size
    prompts = build_queries(setting, policy, rollouts=False)
    if layout == "rows":
        alone = [replace(query, groups=[group]) for query in prompts for group in query.groups]
        prompts, copies = [query for query in alone for _ in range(copies)], 1
    sampling = Sampling(banned=tuple(banned_ids(policy)))
    iteration.engine.respond(policy, iteration.tokenizer, prompts, sampling, copies, seed=0)


def count_tokens(queries: list[Query], layout: str) -> int:
    """Tokens through the language model: of each tree, or of each response's own row."""
    if layout == "rows":
        queries = [row for query in queries for row in separate(query)]
    return sum(map(tree_length, queries))
