"""Prefix trees laid out as rows, so that one forward pass serves all rollouts of a query.

A tree is `[prefix | instruction_b | b_1 … b_N | instruction_t | t_1 … t_N]`: a token attends to
the earlier tokens of its own node and of the nodes above it, and rotary positions continue
from the parent. In: queries, with or without rollouts. Out: `Pack`s, the tensors of one
forward pass each.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from transformers import PreTrainedModel

from ivgr.core.query import Group, Query, Rollout, rollouts_of
from ivgr.core.transfer import cat_pinned, send, send_together
from ivgr.models.forward import hidden_states, prompt_positions
from ivgr.models.tree_attention import tree_mask, uses_flex, visible_from

Layout = Literal["tree", "rows"]


@dataclass
class Pack:
    """B rows of trees, L tokens wide, with G groups and R response tokens in all.

    ids (B, L); positions (3, B, L); reach (B, L): the column where the subtree of a token's
    node ends (see `ivgr.models.tree_attention`); fork_row, fork_column (G,): the last token of
    each group's instruction; row, column (R,): the position whose logits score response token
    r; targets (R,): that token; pixels: the queries' own pixel_values, which stay on the host until a pass
    needs them (an iteration's are gigabytes), and so does image_grid_thw (images, 3), which only the host
    reads; the scoring passes fill ref_logp and old_logp (R,).
    """

    queries: list[Query]
    ids: torch.Tensor
    positions: torch.Tensor
    reach: torch.Tensor
    fork_row: torch.Tensor
    fork_column: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    targets: torch.Tensor
    pixels: list[torch.Tensor]
    image_grid_thw: torch.Tensor | None
    ref_logp: torch.Tensor | None = None
    old_logp: torch.Tensor | None = None

    @property
    def rollouts(self) -> list[Rollout]:
        return rollouts_of(self.queries)

    @cached_property
    def rollout_logp(self) -> torch.Tensor:
        """The log-probs (R,) that the rollout engine recorded."""
        none = torch.zeros(0)
        return send(torch.cat([none, *(rollout.logp for rollout in self.rollouts)]), self.ids.device)

    @property
    def advantage(self) -> torch.Tensor:
        """The advantage (R,) of each token's rollout, fp32."""
        values = torch.tensor([rollout.advantage for rollout in self.rollouts], dtype=torch.float32)
        counts = torch.tensor([len(rollout.tokens) for rollout in self.rollouts], dtype=torch.long)
        return send(torch.repeat_interleave(values, counts), self.ids.device)

    @property
    def fork_sees(self) -> torch.Tensor:
        """The mask (G, L) of the tokens of its row that a group's responses attend to."""
        return visible_from(self.reach, self.fork_row, self.fork_column)

    def hidden(self, model: PreTrainedModel, **options) -> torch.Tensor:
        """Returns the last hidden states (B, L, H) of every token."""
        mask = tree_mask(self.reach, model.lm_head.weight.dtype)
        pixels = send(cat_pinned(self.pixels, self.ids.device), self.ids.device) if self.pixels else None
        return hidden_states(model, self.ids, self.positions, mask, pixels, self.image_grid_thw, **options)

    def response_hidden(self, model: PreTrainedModel) -> torch.Tensor:
        """Returns the hidden states (R, H) that predict each response token."""
        return self.hidden(model)[self.row, self.column]


@dataclass
class _Tree:
    """One row before padding; fields as in `Pack`, without the row axis."""

    ids: torch.Tensor
    positions: torch.Tensor
    reach: torch.Tensor
    forks: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


def pack_queries(
    model: PreTrainedModel,
    queries: list[Query],
    budget: int,
    layout: Layout = "tree",
    join: bool | None = None,
) -> list[Pack]:
    """Returns packs in query order, each of at most `budget` padded tokens, but at least one tree.

    layout "rows" shares nothing: one tree per rollout. join concatenates a pack's trees into a single row,
    without padding; that is the default where the attention kernel skips masked blocks.
    """
    if layout == "rows":
        queries = [row for query in queries for row in split_tree(query, 0)]
    join = uses_flex(model.device) if join is None else join
    trees = [_grow(model, query) for query in queries]
    packs, start = [], 0
    for end in range(1, len(trees) + 1):
        lengths = [len(tree.ids) for tree in trees[start : end + 1]]
        if end == len(trees) or (sum(lengths) if join else max(lengths) * len(lengths)) > budget:
            rows = [_join(trees[start:end])] if join else trees[start:end]
            packs.append(_pad(queries[start:end], rows, model.device))
            start = end
    return packs


def tree_length(query: Query) -> int:
    """Returns the number of tokens of the query's tree."""
    branches = [len(rollout.tokens) for group in query.groups for rollout in group.rollouts]
    return len(query.prefix) + sum(len(group.instruction) for group in query.groups) + sum(branches)


def split_tree(query: Query, budget: int) -> list[Query]:
    """Returns the query as parts whose trees have at most `budget` tokens, but at least one rollout: 0 gives
    one part per rollout. Each part repeats the prefix; the rollouts are the same objects, in tree order."""
    if tree_length(query) <= budget or not rollouts_of([query]):
        return [query]
    parts: list[list[Group]] = []
    length = 0
    for group in query.groups:
        own: Group | None = None
        for rollout in group.rollouts:
            more = len(rollout.tokens) + (0 if own else len(group.instruction))
            if not parts or length + more > budget:
                parts.append([])
                own, length = None, len(query.prefix)
                more = len(group.instruction) + len(rollout.tokens)
            if own is None:
                own = replace(group, rollouts=[])
                parts[-1].append(own)
            own.rollouts.append(rollout)
            length += more
    return [replace(query, groups=groups) for groups in parts]


def _grow(model: PreTrainedModel, query: Query) -> _Tree:
    total, none = tree_length(query), torch.zeros(0, dtype=torch.long)
    root = prompt_positions(model, query.prefix, query.image_grid_thw)
    ids, positions, reach = [query.prefix], [root], [torch.full_like(query.prefix, total)]
    forks, columns, targets, length = [], [none], [none], len(query.prefix)
    for group in query.groups:
        instruction_positions = _continue(root, len(group.instruction))
        subtree = len(group.instruction) + sum(len(rollout.tokens) for rollout in group.rollouts)
        ids.append(group.instruction)
        positions.append(instruction_positions)
        reach.append(torch.full_like(group.instruction, length + subtree))
        length += len(group.instruction)
        fork = length - 1
        forks.append(fork)
        for rollout in group.rollouts:
            count = len(rollout.tokens)
            ids.append(rollout.tokens)
            positions.append(_continue(instruction_positions, count))
            reach.append(torch.full_like(rollout.tokens, length + count))
            columns.append(torch.cat([torch.tensor([fork]), torch.arange(length, length + count)])[:count])
            targets.append(rollout.tokens)
            length += count
    return _Tree(
        torch.cat(ids),
        torch.cat(positions, 1),
        torch.cat(reach),
        torch.tensor(forks, dtype=torch.long),
        torch.cat(columns),
        torch.cat(targets),
    )


def _continue(parent: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the positions (3, count) of text that follows a node with positions `parent` (3, n)."""
    return (parent.max() + 1 + torch.arange(count)).expand(3, -1)


def _join(trees: list[_Tree]) -> _Tree:
    """Concatenates the trees in one row; none attends to another."""
    starts = torch.tensor([0] + [len(tree.ids) for tree in trees]).cumsum(0).tolist()
    shifted = list(zip(trees, starts, strict=False))
    return _Tree(
        torch.cat([tree.ids for tree in trees]),
        torch.cat([tree.positions for tree in trees], 1),
        torch.cat([tree.reach + start for tree, start in shifted]),
        torch.cat([tree.forks + start for tree, start in shifted]),
        torch.cat([tree.columns + start for tree, start in shifted]),
        torch.cat([tree.targets for tree in trees]),
    )


def _pad(queries: list[Query], trees: list[_Tree], device: torch.device) -> Pack:
    width = max(len(tree.ids) for tree in trees)
    ids = torch.zeros(len(trees), width, dtype=torch.long)
    positions = torch.zeros(3, len(trees), width, dtype=torch.long)
    reach = torch.arange(1, width + 1).repeat(len(trees), 1)
    for row, tree in enumerate(trees):
        length = len(tree.ids)
        ids[row, :length], reach[row, :length] = tree.ids, tree.reach
        positions[:, row, :length] = tree.positions
    grids = [query.image_grid_thw for query in queries if query.image_grid_thw is not None]
    integers = {
        "ids": ids,
        "positions": positions,
        "reach": reach,
        "fork_row": _row_of([tree.forks for tree in trees]),
        "fork_column": torch.cat([tree.forks for tree in trees]),
        "row": _row_of([tree.columns for tree in trees]),
        "column": torch.cat([tree.columns for tree in trees]),
        "targets": torch.cat([tree.targets for tree in trees]),
    }
    return Pack(
        queries=queries,
        **dict(zip(integers, send_together(list(integers.values()), device), strict=True)),
        pixels=[query.pixel_values for query in queries if query.pixel_values is not None],
        image_grid_thw=torch.cat(grids) if grids else None,
    )


def _row_of(parts: list[torch.Tensor]) -> torch.Tensor:
    """Returns, for each element of the concatenated parts, the index of its part."""
    return torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part) for part in parts]))
