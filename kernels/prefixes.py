"""Prefixes that branches share, as attention takes them."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Prefixes:
    """P prefixes and which of R branches see them.

    keys, values (P, H, L, D); table (P, S): the branches of each; bias (P, S, L): 0 for tokens that a
    branch sees, else the least number of fp32; prefix_of, column (R,): a branch's place in table.
    """

    keys: torch.Tensor
    values: torch.Tensor
    table: torch.Tensor
    bias: torch.Tensor
    prefix_of: torch.Tensor
    column: torch.Tensor
