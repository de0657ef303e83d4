"""The types that flow through an iteration: a `Query` owns its groups of `Rollout`s.

data → rollout → reward → advantage → loss: each phase fills fields that the earlier ones
left empty. One query is one tree: prefix → a stream's instruction → its rollouts.
"""

from dataclasses import dataclass, field, replace

import torch

from ivgr.core.frame import Frame
from ivgr.core.sample import Sample


@dataclass
class Rollout:
    """One sampled response of T tokens (the end-of-turn token included if it was reached).

    logp and sampling_logp are fp32 of shape (T,): the first under softmax(logits /
    temperature) over the full vocabulary, the second under the distribution that was
    sampled from (after top-p and bans), NaN if the engine does not tell. text is the whole
    response, what its chat template opens included. terms holds each reward term before
    weighting, but for one whose verdict is missing; reward is None then, and until it is scored.
    given_up: comparing the mathematics of its answer took too long.
    """

    tokens: torch.Tensor
    logp: torch.Tensor
    sampling_logp: torch.Tensor
    text: str
    truncated: bool
    terms: dict[str, float] = field(default_factory=dict)
    reward: float | None = None
    advantage: float = 0.0
    reference: str | None = None
    given_up: bool = False


@dataclass
class Group:
    """The rollouts of one query in one stream; instruction is (I,) token ids: what
    follows the query's prefix in that stream's prompt. opened is what of the response the prompt's end
    already holds (`<think>` with some chat templates): each rollout's text begins with it, its tokens
    do not."""

    stream: str
    instruction: torch.Tensor
    rollouts: list[Rollout] = field(default_factory=list)
    opened: str = ""


@dataclass
class Query:
    """A sample made ready for the policy.

    prefix is (P,) token ids shared by all streams; pixel_values (patches, C·t·p·p) and
    image_grid_thw (images, 3) are None for text only; boxes are gold, in `frame`; place is its
    index among all ranks' samples of the iteration, None where nobody counts; source is the index of
    the training data's source that it is from, None if there is but one.
    """

    sample: Sample
    prefix: torch.Tensor
    groups: list[Group]
    boxes: tuple[tuple[float, ...], ...] = ()
    frame: Frame = Frame(1000.0, 1000.0)
    pixel_values: torch.Tensor | None = None
    image_grid_thw: torch.Tensor | None = None
    sample_index: int | None = None
    source: int | None = None

    def group(self, stream: str) -> Group | None:
        return next((group for group in self.groups if group.stream == stream), None)


def rollouts_of(queries: list[Query]) -> list[Rollout]:
    """All rollouts in tree order: query by query, stream by stream."""
    return [rollout for query in queries for group in query.groups for rollout in group.rollouts]


def global_indices(queries: list[Query]) -> list[int]:
    """Each query's place in the iteration; its index where nobody counts."""
    return [
        index if query.sample_index is None else query.sample_index for index, query in enumerate(queries)
    ]


def separate(query: Query) -> list[Query]:
    """A query for every rollout, which nothing else shares; the rollouts are the same objects."""
    return [
        replace(query, groups=[replace(group, rollouts=[rollout])])
        for group in query.groups
        for rollout in group.rollouts
    ]
