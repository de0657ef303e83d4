"""The responses of a rollout while they are written, token by token, on the policy's device."""

import torch
import torch.distributed as dist

from ivgr.core.errors import UserError
from ivgr.distributed.tensor_parallel import as_first
from ivgr.models.forward import not_finite
from ivgr.rollout.sampling import Sampling

# Tokens, log-probs, log-probs under the distribution that was sampled from, and whether it has ended.
Response = tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]


class Responses:
    """B responses of up to T tokens. Each begins anew when it is decoded again, and gets the same random
    numbers whenever and beside whatever others that is. What nobody reads is written in place B.

    Args:
        limits: The most tokens of each response, at most T.
        sampling: How a token is chosen.
        stops: The tokens that end a response.
        noise: Random numbers (B, T) to sample with; null for greedy decoding.
        device: Where they are written.
        tp_group: Ranks that decode the same responses together: what the first of them chooses, all write.
    """

    def __init__(
        self,
        limits: list[int],
        sampling: Sampling,
        stops: list[int],
        noise: torch.Tensor | None,
        device: torch.device,
        tp_group: dist.ProcessGroup | None = None,
    ) -> None:
        self.count = count = len(limits)
        self.limit = limit = max(limits)
        self.most = torch.tensor([*limits, limit], device=device)
        self.sampling = sampling
        self.tp_group = tp_group
        self.stops = torch.tensor(stops, dtype=torch.long, device=device)
        self.noise = None if noise is None else torch.cat([noise, noise[:1]]).to(device)
        self.tokens = torch.zeros(count + 1, limit, dtype=torch.long, device=device)
        self.logp, self.sampling_logp = torch.zeros(2, count + 1, limit, device=device)
        self.length = torch.zeros(count + 1, dtype=torch.long, device=device)
        self.ended = torch.zeros(count + 1, dtype=torch.bool, device=device)
        self.broken = torch.zeros(count + 1, dtype=torch.bool, device=device)

    def begin(self, numbers: torch.Tensor) -> None:
        self.length[numbers] = 0
        self.ended[numbers] = False

    def extend(
        self, numbers: torch.Tensor, going_on: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chooses the next token of the responses `numbers` (n,) by logits (n, V), and writes it to those
        that are going_on (n,). Returns the tokens (n,), and which responses go on after them (n,)."""
        place = self.length[numbers].clamp(max=self.limit - 1)
        noise = None if self.noise is None else self.noise[numbers, place]
        chosen = self.sampling.choose(logits, noise)
        token, logp, sampling_logp = as_first(self.tp_group, chosen)
        written = torch.where(going_on, numbers, self.count)
        self.tokens[written, place] = token
        self.logp[written, place] = logp
        self.sampling_logp[written, place] = sampling_logp
        self.length[written] += 1
        # A logit that is not finite shows in the log-prob of whatever was chosen.
        self.broken[written] = ~logp.isfinite()
        stopped = torch.isin(token, self.stops)
        self.ended[written] = stopped
        return token, going_on & ~stopped & (place + 1 < self.most[numbers]) & logp.isfinite()

    def unfinished(self) -> list[int]:
        """Returns the responses that may still grow, in order."""
        length, ended = self.length[: self.count], self.ended[: self.count]
        return (~ended & (length < self.most[: self.count])).nonzero()[:, 0].tolist()

    def not_finite(self) -> UserError:
        """The refusal of logits that were not finite."""
        broken = self.broken[: self.count]
        token = int(self.length[: self.count][broken].min())
        return not_finite(f"in {int(broken.sum())} of {self.count} responses, at token {token}")

    def read(self) -> list[Response]:
        """Returns all of them, on the CPU."""
        tokens, logp, sampling_logp = self.tokens.cpu(), self.logp.cpu(), self.sampling_logp.cpu()
        ended = self.ended.tolist()
        return [
            (tokens[i, :n].clone(), logp[i, :n].clone(), sampling_logp[i, :n].clone(), ended[i])
            for i, n in enumerate(self.length[: self.count].tolist())
        ]
