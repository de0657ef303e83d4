"""The metrics of an iteration by name; a name that begins with STREAM/ is of one stream. `ivgr.plotting.tags`
holds the tags and descriptions that loggers show."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from ivgr.core.prompts import STREAMS, TEXTUAL
from ivgr.core.query import Group, Query, Rollout, rollouts_of
from ivgr.distributed.collectives import gather, gather_lists
from ivgr.judge.protocol import CONSISTENCY_SCORES, Judge, RulesAlone
from ivgr.kernels import TokenStatistics
from ivgr.packing.prefix_tree import Pack
from ivgr.rewards.archive import Archive
from ivgr.trainer.loss import TokenLoss


def batch_metrics(queries: list[Query], archive: Archive, rollout_seconds: float) -> dict[str, float]:
    """Returns the metrics of one iteration's rollouts and rewards. reward/math_given_up, if there are any,
    counts the answers whose mathematics took too long to compare; they count as not equal."""
    groups = [group for query in queries for group in query.groups]
    rollouts = rollouts_of(queries)
    tokens = _lengths(rollouts)
    known = [[r.reward for r in group.rollouts if r.reward is not None] for group in groups]
    given_up = sum(rollout.given_up for rollout in rollouts)
    return {
        **({"reward/math_given_up": float(given_up)} if given_up else {}),
        **_stream_metrics(groups),
        **_archive_metrics(queries, archive),
        "reward/frac_zero_std": _mean([len(set(rewards)) < 2 for rewards in known]),
        "advantage/groups_without": float(sum(len(rewards) < 2 for rewards in known)),
        "rollout/length_mean": _mean(tokens),
        "rollout/truncated_frac": _mean([rollout.truncated for rollout in rollouts]),
        "rollout/tokens_per_s": sum(tokens) / rollout_seconds,
    }


def judge_metrics(judge: Judge, verdicts: list) -> dict[str, float]:
    """Returns the share of all ranks' `verdicts` that are missing (None) and the sums of what their judges
    report; nothing without a judge."""
    if isinstance(judge, RulesAlone):
        return {}
    missing = _mean(gather_lists([verdict is None for verdict in verdicts]))
    reports = gather(judge.report() if hasattr(judge, "report") else {})
    return {
        "judge/missing_share": missing,
        **{f"judge/{name}": value for name, value in sum_by_name(reports).items()},
    }


def _stream_metrics(groups: list[Group]) -> dict[str, float]:
    """Returns each stream's lengths, and its terms over the rollouts that have them."""
    metrics = {}
    for stream in STREAMS:
        rollouts = [rollout for group in groups if group.stream == stream for rollout in group.rollouts]
        columns = {"total": [rollout.reward for rollout in rollouts if rollout.reward is not None]}
        for rollout in rollouts:
            for name, value in rollout.terms.items():
                columns.setdefault(name, []).append(value)
        if rollouts:
            metrics[f"{stream}/rollout/length_mean"] = _mean(_lengths(rollouts))
        for name, values in columns.items():
            if not values:
                continue
            metrics[f"{stream}/reward/{name}/mean"] = _mean(values)
            metrics[f"{stream}/reward/{name}/std"] = _std(values)
    return metrics


def _archive_metrics(queries: list[Query], archive: Archive) -> dict[str, float]:
    textual = [group for query in queries if (group := query.group(TEXTUAL)) is not None]
    compared = [r for group in textual for r in group.rollouts if r.reference is not None]
    scores = [r.terms["consistency"] for r in compared if "consistency" in r.terms]
    shares = Counter(min(CONSISTENCY_SCORES, key=lambda level: abs(level - score)) for score in scores)
    hits = [group.rollouts[0].reference is not None for group in textual]
    return {
        "archive/size": float(len(archive)),
        "archive/hit_rate": _mean(hits),
        "archive/box_mean": _mean([entry.box_reward for entry in archive.entries.values()]),
        **{f"consistency/share_{s:g}": shares[s] / max(len(scores), 1) for s in CONSISTENCY_SCORES},
    }


@dataclass
class UpdateMetrics:
    """Token-weighted means over an iteration's updates and all ranks; only the gradient norm if no token took
    part. counts holds the number of tokens in each sum. Sums and ratio_max stay on the device until
    `compute`, so that no pack waits for them."""

    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)
    ratio_max: torch.Tensor | None = None
    grad_norms: list[float] = field(default_factory=list)

    def add(
        self, pack: Pack, statistics: TokenStatistics, loss: TokenLoss, old_logp: torch.Tensor | None
    ) -> None:
        """Adds a pack; old_logp is given in the first epoch, to compare with the rollout's log-probs."""
        kl, entropy = cast(torch.Tensor, statistics.kl), cast(torch.Tensor, statistics.entropy)
        columns: dict[str, torch.Tensor] = {
            "policy/kl": kl,
            "policy/entropy": entropy,
            "policy/clip_low": loss.clipped_low,
            "policy/clip_high": loss.clipped_high,
            "optim/loss": loss.loss,
        }
        if not len(pack.targets):
            return
        if loss.importance is not None:
            columns["policy/importance_mean"] = loss.importance
            columns["policy/importance_capped"] = cast(torch.Tensor, loss.importance_capped)
        if old_logp is not None:
            columns["rollout/logp_mismatch"] = (old_logp - pack.rollout_logp).abs()
        for stream, own in _tokens_by_stream(pack).items():
            columns[f"{stream}/policy/kl"] = torch.cat([kl[tokens] for tokens in own])
            columns[f"{stream}/policy/entropy"] = torch.cat([entropy[tokens] for tokens in own])
        for name, value in columns.items():
            total = value.detach().double().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.counts.update({name: len(value) for name, value in columns.items()})
        largest = loss.ratio.max().double()
        before = torch.zeros_like(largest) if self.ratio_max is None else self.ratio_max
        self.ratio_max = torch.fmax(before, largest)  # which passes over NaN

    def compute(self) -> dict[str, float]:
        """Returns the means; all ranks must call it."""
        norm = {"optim/grad_norm": _mean(self.grad_norms)}
        *totals, ratio_max = self._read()
        parts = gather((dict(zip(self.sums, totals, strict=True)), dict(self.counts), ratio_max))
        sums, counts, ratios = zip(*parts, strict=True)
        counted = sum_by_name(counts)
        if not counted:
            return norm
        means = {name: total / counted[name] for name, total in sum_by_name(sums).items()}
        return means | norm | {"policy/ratio_max": max(ratios)}

    def _read(self) -> list[float]:
        """Returns the sums and ratio_max, in one copy to the host."""
        if self.ratio_max is None:
            return [0.0]
        return torch.stack([*self.sums.values(), self.ratio_max]).tolist()


def _tokens_by_stream(pack: Pack) -> dict[str, list[slice]]:
    """Returns where the response tokens of each stream lie among the pack's R: a slice per group."""
    places: dict[str, list[slice]] = {}
    start = 0
    for group in (group for query in pack.queries for group in query.groups if group.rollouts):
        end = start + sum(_lengths(group.rollouts))
        places.setdefault(group.stream, []).append(slice(start, end))
        start = end
    return places


def _lengths(rollouts: Sequence[Rollout]) -> list[int]:
    return [len(rollout.tokens) for rollout in rollouts]


def sum_by_name(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the sums by name, over the parts that have the name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
