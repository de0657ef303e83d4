"""The types that flow through an iteration: a `Query` owns its groups of `Rollout`s.

data → rollout → reward → advantage → loss: each phase fills fields that the earlier ones
left empty. One query is one tree: prefix → a stream's instruction → its rollouts.
"""

from dataclasses import dataclass, field

import torch

from ivgr.core.frame import Frame
from ivgr.core.sample import Sample


@dataclass
class Rollout:
    """One sampled response of T tokens (the end-of-turn token included if it was reached).

    logp and sampling_logp are fp32 of shape (T,): the first under softmax(logits /
    temperature) over the full vocabulary, the second under the distribution that was
    sampled from (after top-p and bans), NaN if the engine does not report it. text is the whole
    response, including what the chat template opens. terms holds each reward term before
    weighting, except one whose verdict is missing; then, and before scoring, reward is None.
    given_up says that comparing the mathematics of its answer took too long.
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
    """The rollouts of one query in one stream.

    instruction (I,) holds the token ids that follow the query's prefix in that stream's prompt. opened is
    the start of the response that the prompt already contains (`<think>` with some chat templates): each
    rollout's text begins with it, its tokens do not.
    """

    stream: str
    instruction: torch.Tensor
    rollouts: list[Rollout] = field(default_factory=list)
    opened: str = ""


@dataclass
class Query:
    """A sample made ready for the policy.

    prefix (P,) holds the token ids that all streams share; pixel_values (patches, C·t·p·p) and
    image_grid_thw (images, 3) are None without images; boxes are gold boxes, in `frame`; sample_index is its
    index among the samples of all ranks in the iteration, None outside an iteration; source is the index of
    its data source, None if there is only one.
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
    """Returns all rollouts in tree order: query by query, stream by stream."""
    return [rollout for query in queries for group in query.groups for rollout in group.rollouts]


def global_indices(queries: list[Query]) -> list[int]:
    """Returns the sample_index of each query; its position in `queries` if it has none."""
    return [
        index if query.sample_index is None else query.sample_index for index, query in enumerate(queries)
    ]
