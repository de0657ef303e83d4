"""What a figure is called where it is drawn, and what it says.

In: a name in `module.metrics`, or a tag of an event file of any age. Out: its tag, its stream, a
description. TensorBoard sorts by name and opens the first two groups (what stands before the first "/"):
held_out, whether the policy learns, and reward, by what. Then come what the reward is made of and the
rollouts, and last what one opens when something is wrong: samples, time, update, zero_std.
"""

import re
from typing import NamedTuple

from ivgr.core.prompts import STREAMS
from ivgr.plotting.share_stack import LEGEND

HELD_OUT, SUBSET, WHOLE = "held_out", "subset", "whole"  # held_out/FIGURE_subset, held_out/FIGURE_whole
VALIDATION = "val"  # val/STREAM/FIGURE is what checkpoint_best, `ivgr validate` and HPARAMS call it
OWN = "Written by a class or a callback of your own."


class Name(NamedTuple):
    """tag is shared by all streams; stream is None for a figure of the whole run."""

    tag: str
    stream: str | None = None

    def __str__(self) -> str:
        """Returns the name for loggers that have one list of names."""
        return f"{self.stream}/{self.tag}" if self.stream else self.tag


# Names in `module.metrics`, without the stream → tags. What is not here keeps its name.
RENAMED = {
    r"reward/(.+)/mean": r"reward/\1",
    r"reward/(.+)/std": r"reward_std/\1",
    r"rollout/length_mean": "rollout/length",
    r"rollout/resampled": "zero_std/resampled",
    r"policy/(entropy|kl)": r"rollout/\1",
    r"(?:policy|optim|guard)/(.+)": r"update/\1",
    r"(archive|consistency|judge)/(.+)": r"reward_\1/\2",
    r"data/(.+)": r"samples/\1",
    r"advantage/flat_share_(before|after)": r"zero_std/share_\1",
    r"advantage/groups_without": "zero_std/groups_without",
    rf"{VALIDATION}/(.+)": rf"{HELD_OUT}/\1_{WHOLE}",
}

_SUBSET = "the first held-out queries (held_out_queries), answered greedily"
_WHOLE = "all held-out queries of a validation, answered greedily"
_FIGURES = {
    "accuracy": "share of right answers; a response that breaks the format is wrong",
    "format": "share of responses in the form <think>…</think><answer>…</answer>",
    "iou": "overlap of the boxes written in the reasoning with the gold boxes (R_box)",
    "length": "tokens per response",
    "unjudged": "share of responses on which the judge gave no verdict; accuracy leaves them out",
    "math_given_up": "share of answers whose mathematics took too long to compare; they count as wrong",
    r"(.+)": r"\1, a validation metric of the config",
}
# Tag → description, the first that matches.
DESCRIPTIONS = {
    r"bench/([^/]+)/([^/]+)/accuracy": r"Share of right answers to the drawn rows of \1, asked in mode \2.",
    **{f"{HELD_OUT}/{name}_{SUBSET}": f"Of {_SUBSET}: {said}." for name, said in _FIGURES.items()},
    **{f"{HELD_OUT}/{name}_{WHOLE}": f"Of {_WHOLE}: {said}." for name, said in _FIGURES.items()},
    rf"{VALIDATION}/([^/]+)/(.+)": rf"{HELD_OUT}/\2_{WHOLE} of the \1 stream, for HPARAMS.",
    r"probe/attention/\d+": "Attention of the reasoning over the image, from dark to pale; gold boxes green.",
    r"probe/.+": "A probe of localization on fixed held-out samples (see `ivgr.tools.Probing`), mean.",
    "reward/total": "Mean reward: the weighted sum of the terms.",
    "reward/accuracy": "Mean accuracy reward before weighting: 1 for a right answer.",
    "reward/format": "Mean format reward before weighting: 1 for the right form.",
    "reward/box": "Mean box reward before weighting: overlap of written and gold boxes.",
    "reward/validity": "Mean validity reward before weighting: well-formed boxes among all that were begun.",
    "reward/consistency": "Mean consistency reward before weighting: agreement with the archive's reference.",
    "reward/frac_zero_std": "Share of groups whose rewards are all equal: they teach nothing.",
    "reward/math_given_up": "Answers whose mathematics took too long to compare; they count as wrong.",
    r"reward/(.+)": r"Mean of the reward term \1 before weighting.",
    "reward_archive/size": "Queries whose best grounded reasoning is kept. Healthy: grows by most queries.",
    "reward_archive/hit_rate": "Share of textual groups whose query has a reference in the archive.",
    "reward_archive/box_mean": "Mean box reward of the rollouts in the archive.",
    "reward_consistency/shares": f"Shares of the consistency scores over the run, stacked: {LEGEND}.",
    r"reward_consistency/share_(.+)": r"Share of compared textual rollouts with consistency score \1.",
    "reward_judge/missing_share": "Share of questions on which the judge gave no verdict.",
    r"reward_judge/failures/(.+)": r"Failed requests to the judge in this iteration: \1.",
    r"reward_judge/(.+)": r"What the judge reports of this iteration: \1.",
    r"reward_std/(.+)": r"Standard deviation over the rollouts: \1 (total: of the reward).",
    "rollout/entropy": "Entropy of the policy per response token, nats. Healthy: sinks slowly, not to 0.",
    "rollout/kl": "KL to the frozen reference per response token, nats. Healthy: rises slowly from 0.",
    "rollout/length": "Tokens per response.",
    "rollout/truncated_frac": "Share of responses cut off at engine.sampling.max_new_tokens.",
    "rollout/tokens_per_s": "Response tokens per second of rollout, of all ranks.",
    "rollout/logp_mismatch": "Mean distance of engine's and trainer's log-probs, nats. Healthy: near 0.",
    "rollout/completions": "The best and the worst rollout of each group, with reward, advantage and terms.",
    r"rollout/boxes/\d+": "The best grounded rollout; gold boxes yellow on black, predicted purple on white.",
    "samples/rejected_share": "Share of the samples drawn so far that could not be used.",
    r"samples/rejected/(.+)": r"Samples drawn so far that could not be used: \1.",
    "time/data_wait": "Seconds that the iteration waited for its batch.",
    "time/judge_wait": "Seconds in which nothing could be done but wait for the judge.",
    r"time/(.+)": r"Seconds of the iteration spent in: \1.",
    "update/loss": "Loss per token. Falls in a cold start; in reinforcement learning it says little.",
    "update/lr": "Learning rate.",
    "update/grad_norm": "Gradient norm before clipping, mean over the iteration's updates.",
    "update/clip_(low|high)": r"Share of tokens whose ratio is clipped at the \1 bound.",
    "update/ratio_max": "Largest ratio of new to old token probability.",
    "update/importance_mean": "Mean importance weight of the trainer's over the engine's probability.",
    "update/importance_capped": "Share of tokens whose importance weight is capped.",
    "update/skipped": "Updates of the run that were skipped because a number was not finite.",
    "update/token_budget": "Padded tokens per micro-batch; falls when memory runs out.",
    r"zero_std/share_(before|after)": r"Share of groups whose rewards are all equal, \1 resampling.",
    "zero_std/groups_without": "Groups with fewer than two known rewards: they have no advantages.",
    "zero_std/resampled": "Groups that were rolled out again because their rewards were all equal.",
}


def name_of(metric: str) -> Name:
    """The tag and stream of a name in `module.metrics`, of val/STREAM/NAME or probe/STREAM/NAME. A tag is
    its own."""
    parts = metric.split("/")
    stream = next((part for part in parts[:2] if part in STREAMS), None)
    if stream is not None:
        parts.remove(stream)
    rest = "/".join(parts)
    for old, new in RENAMED.items():
        if match := re.fullmatch(old, rest):
            return Name(match.expand(new), stream)
    return Name(rest, stream)


def describe(tag: str) -> str:
    """Returns the description of a tag: what its figure, text or picture shows."""
    for pattern, description in DESCRIPTIONS.items():
        if match := re.fullmatch(pattern, tag):
            return match.expand(description)
    return OWN
