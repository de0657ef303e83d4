"""Choosing the next token: temperature, bans and top-p, with both log-probs recorded."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy; top_p keeps the smallest set of tokens that holds that
    probability; banned ids are never chosen."""

    temperature: float = 1.0
    top_p: float = 1.0
    banned: tuple[int, ...] = ()

    def choose(self, logits: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """From logits (B, V): token (B,), its logp (B,) under the full vocabulary and its
        sampling_logp (B,) under the truncated, renormalised distribution; fp32."""
        scaled = logits.float() / (self.temperature or 1.0)
        full = torch.log_softmax(scaled, -1)
        kept = scaled.clone()
        kept[:, list(self.banned)] = -torch.inf
        if self.temperature == 0:
            token = kept.argmax(-1)
            return token, full.gather(1, token[:, None])[:, 0], torch.zeros_like(full[:, 0])
        kept = torch.log_softmax(self._nucleus(kept), -1)
        token = torch.multinomial(kept.exp(), 1, generator=generator)
        return token[:, 0], full.gather(1, token)[:, 0], kept.gather(1, token)[:, 0]

    def _nucleus(self, logits: torch.Tensor) -> torch.Tensor:
        if self.top_p >= 1:
            return logits
        sorted_logits, order = logits.sort(-1, descending=True)
        probability = sorted_logits.softmax(-1)
        before = probability.cumsum(-1) - probability
        dropped = torch.zeros_like(before, dtype=torch.bool).scatter(1, order, before >= self.top_p)
        return logits.masked_fill(dropped, -torch.inf)
