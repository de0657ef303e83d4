"""Query trees laid out as rows, so that one forward pass serves a query's every rollout.

A row is `[prefix | instruction_b | b_1 … b_N | instruction_t | t_1 … t_N]`: a token sees
the earlier tokens of its own node and of the nodes above it, and rotary positions continue
from the parent. What flows in: queries with rollouts. Out: `Pack`s, tensors of a
micro-batch, and the per-token positions whose logits score each response token.
"""

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from ivgr.policy.forward import additive_mask, hidden_states, prompt_positions
from ivgr.query import Query, Rollout, rollouts_of

PAD = -1


@dataclass
class Pack:
    """A micro-batch of B trees, L tokens wide, with R response tokens in all.

    ids (B, L); positions (3, B, L); visible (B, L, L) bool; row, column (R,): where the
    logits that score response token r stand; targets (R,): that token; ref_logp and
    old_logp (R,) are filled by the scoring pass.
    """

    queries: list[Query]
    ids: torch.Tensor
    positions: torch.Tensor
    visible: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    targets: torch.Tensor
    pixel_values: torch.Tensor | None
    image_grid_thw: torch.Tensor | None
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None

    @property
    def rollouts(self) -> list[Rollout]:
        return rollouts_of(self.queries)

    @property
    def rollout_logp(self) -> torch.Tensor:
        """The log-probs (R,) that the rollout engine recorded."""
        return torch.cat([rollout.logp for rollout in self.rollouts]).to(self.ids.device)

    @property
    def advantage(self) -> torch.Tensor:
        """The advantage (R,) of each token's rollout, fp32."""
        values = torch.tensor([rollout.advantage for rollout in self.rollouts])
        counts = torch.tensor([len(rollout.tokens) for rollout in self.rollouts])
        return torch.repeat_interleave(values, counts).to(self.ids.device)

    def response_hidden(self, model: PreTrainedModel) -> torch.Tensor:
        """Hidden states (R, H) from which each response token is predicted."""
        mask = additive_mask(self.visible, model.dtype)
        hidden = hidden_states(model, self.ids, self.positions, mask, self.pixel_values, self.image_grid_thw)
        return hidden[self.row, self.column]


@dataclass
class _Tree:
    """One row before padding: ids (L,), positions (3, L), node (L,) of each token, the
    parent of each node, and (column, target) of each response token."""

    ids: torch.Tensor
    positions: torch.Tensor
    node: torch.Tensor
    parent: list[int]
    columns: torch.Tensor
    targets: torch.Tensor


def pack_queries(model: PreTrainedModel, queries: list[Query], budget: int) -> list[Pack]:
    """Packs in query order, each of at most `budget` padded tokens (but one query at least)."""
    trees = [_grow(model, query) for query in queries]
    packs, start = [], 0
    for end in range(1, len(trees) + 1):
        width = max(len(tree.ids) for tree in trees[start : end + 1])
        if end == len(trees) or width * (end + 1 - start) > budget:
            packs.append(_pad(queries[start:end], trees[start:end], model.device))
            start = end
    return packs


def tree_length(query: Query) -> int:
    """Tokens of the query's tree."""
    branches = [len(rollout.tokens) for group in query.groups for rollout in group.rollouts]
    return len(query.prefix) + sum(len(group.instruction) for group in query.groups) + sum(branches)


def _grow(model: PreTrainedModel, query: Query) -> _Tree:
    grid = query.image_grid_thw
    ids = [query.prefix]
    positions = [
        prompt_positions(model, query.prefix, None if grid is None else grid.to(query.prefix.device))
    ]
    parent, columns, targets = [PAD], [], []
    length = len(query.prefix)
    for group in query.groups:
        ids.append(group.instruction)
        positions.append(_continue(positions[0], len(group.instruction)))
        stem, stem_positions = len(parent), positions[-1]
        parent.append(0)
        length += len(group.instruction)
        fork = length - 1
        for rollout in group.rollouts:
            count = len(rollout.tokens)
            ids.append(rollout.tokens)
            positions.append(_continue(stem_positions, count))
            parent.append(stem)
            columns.append(torch.cat([torch.tensor([fork]), torch.arange(length, length + count)])[:count])
            targets.append(rollout.tokens)
            length += count
    node = torch.repeat_interleave(torch.arange(len(ids)), torch.tensor([len(part) for part in ids]))
    return _Tree(
        torch.cat(ids), torch.cat(positions, 1), node, parent, torch.cat(columns), torch.cat(targets)
    )


def _continue(parent: torch.Tensor, count: int) -> torch.Tensor:
    """Positions (3, count) of text that follows a node with positions `parent` (3, n)."""
    return (parent.max() + 1 + torch.arange(count)).expand(3, -1)


def _visible(tree: _Tree) -> torch.Tensor:
    """(L, L) bool: query token i sees key token j."""
    nodes = len(tree.parent)
    above = torch.eye(nodes, dtype=torch.bool)
    for child, parent in enumerate(tree.parent):
        if parent != PAD:
            above[child] |= above[parent]
    causal = torch.ones(len(tree.ids), len(tree.ids), dtype=torch.bool).tril_()
    return above[tree.node][:, tree.node] & causal


def _pad(queries: list[Query], trees: list[_Tree], device: torch.device) -> Pack:
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.long)
    positions = torch.zeros(3, len(trees), width, dtype=torch.long)
    visible = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    for row, tree in enumerate(trees):
        length = len(tree.ids)
        ids[row, :length] = tree.ids
        positions[:, row, :length] = tree.positions
        visible[row, :length, :length] = _visible(tree)
    counts = torch.tensor([len(tree.columns) for tree in trees])
    pixels = [query.pixel_values for query in queries if query.pixel_values is not None]
    grids = [query.image_grid_thw for query in queries if query.image_grid_thw is not None]
    return Pack(
        queries=queries,
        ids=ids.to(device),
        positions=positions.to(device),
        visible=visible.to(device),
        row=torch.repeat_interleave(torch.arange(len(trees)), counts).to(device),
        column=torch.cat([tree.columns for tree in trees]).to(device),
        targets=torch.cat([tree.targets for tree in trees]).to(device),
        pixel_values=torch.cat(pixels).to(device) if pixels else None,
        image_grid_thw=torch.cat(grids).to(device) if grids else None,
    )
