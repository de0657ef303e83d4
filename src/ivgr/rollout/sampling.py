"""Sampling of the next token: temperature, banned tokens and top-p, with both log-probs recorded."""

from dataclasses import dataclass

import torch

from ivgr.core.seeding import derive_seed
from ivgr.core.settings import AtLeastTwo, PositiveFloat, PositiveInt, PositiveShare, checked
from ivgr.core.transfer import send
from ivgr.kernels.dispatch import uses_triton

# Tokens sorted at first; the whole vocabulary is looked through only where they do not hold top_p.
HEAD = 64


@checked("model.engine.sampling.")
@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings of sampling, for all engines."""

    group_size: AtLeastTwo = 5
    """Rollouts per query and stream (N)."""

    temperature: PositiveFloat = 1.0
    """Sampling temperature; all log-probs of the run are taken at it. VLLMEngine takes 1 only."""

    top_p: PositiveShare = 0.99
    """Nucleus kept when sampling."""

    max_new_tokens: PositiveInt = 1024
    """Longest response; longer ones are cut and counted."""


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the smallest set of tokens that holds that
    probability; banned ids are never chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    banned: tuple[int, ...] = ()

    def choose(self, logits: torch.Tensor, draw: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """Returns token (B,), its logp (B,) under the full vocabulary and its sampling_logp (B,) under the
        truncated, renormalised distribution, in fp32, from logits (B, V) and draw (B,), fp64 in [0, 1).
        Greedy decoding needs no draw."""
        scaled = logits.float() / (self.temperature or 1.0)
        full = torch.log_softmax(scaled, -1)
        banned = send(torch.tensor(self.banned, dtype=torch.long), logits.device)
        allowed = scaled.index_fill(-1, banned, -torch.inf)
        if self.temperature == 0:
            token = allowed.argmax(-1)
            return token, full.gather(1, token[:, None])[:, 0], torch.zeros_like(full[:, 0])
        assert draw is not None, "sampling draws"
        token, sampling_logp = self._draw(allowed.softmax(-1), draw)
        return token, full.gather(1, token[:, None])[:, 0], sampling_logp

    def _draw(self, probability: torch.Tensor, draw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns token and sampling_logp (B,) for rows (B, V). A row's token does not depend on the other
        rows."""
        head, order = probability.topk(min(HEAD, probability.shape[-1]), -1)
        token, total = self._pick(head, order, draw)
        if head.shape[-1] < probability.shape[-1]:
            beyond = head.double().sum(-1) < min(self.top_p, 1 - 1e-9)
            self._redraw(probability, draw, beyond, token, total)
        chosen = probability.gather(1, token[:, None])[:, 0]
        return token, (chosen.double() / total).log().float()

    def _redraw(
        self,
        probability: torch.Tensor,
        draw: torch.Tensor,
        beyond: torch.Tensor,
        token: torch.Tensor,
        total: torch.Tensor,
    ) -> None:
        """Puts right token and total (B,) of the rows `beyond` (B,), whose HEAD likeliest tokens do not hold
        top_p. Only those are looked through: by a kernel, or sorted, for which a GPU's host would wait."""
        if uses_triton(probability.device):
            from ivgr.kernels import nucleus_triton

            return nucleus_triton.redraw(probability, draw, self.top_p, beyond, token, total)
        rows = beyond.nonzero()[:, 0]
        if len(rows):
            falling, order = probability[rows].sort(dim=-1, descending=True, stable=True)
            token[rows], total[rows] = self._pick(falling, order, draw[rows])

    def _pick(
        self, falling: torch.Tensor, order: torch.Tensor, draw: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the token and the nucleus' total (B,), fp64, from probabilities in descending order, which
        hold top_p, and their token ids."""
        falling = falling.double()
        kept = falling.masked_fill(falling.cumsum(-1) - falling >= self.top_p, 0.0)
        total = kept.cumsum(-1)
        index = (total <= draw[:, None] * total[:, -1:]).sum(-1, keepdim=True)
        # Where the logits are NaN nothing is kept: the choice is void, and its logp is NaN.
        index = torch.minimum(index, (kept > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
        return order.gather(1, index)[:, 0], total[:, -1].contiguous()


def draw_noise(places: list[int], branches: list[int], limit: int, seed: int) -> torch.Tensor:
    """Returns random numbers (R, limit), fp64 in [0, 1), for each query's branches in turn. Those of a query
    depend on `seed` and its sample_index only, not on the batch or the device."""
    drawn = []
    for place, count in zip(places, branches, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, "noise", place))
        drawn.append(torch.rand(count, limit, generator=generator, dtype=torch.float64))
    return torch.cat(drawn)
