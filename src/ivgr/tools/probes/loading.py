"""Whom to examine, on what: for notebooks and scripts. In: a path. Out: a policy with its encoder, or
samples."""

from itertools import islice

from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from ivgr.core.prompts import Prompts
from ivgr.core.sample import Sample
from ivgr.data.encode import QueryEncoder
from ivgr.data.shards import ShardedSample, find_shards, read_samples
from ivgr.models.pretrained import Pretrained
from ivgr.tools.inference.load_policy import policy_and_encoder
from ivgr.toy.world import World, draw_samples


def open_policy(path: str = "tiny", **settings) -> tuple[PreTrainedModel, QueryEncoder]:
    """A policy, ready to answer, and what encodes questions for it. path and settings: those of
    `ivgr.Pretrained`. No progress bars. UserError if there is no such model."""
    disable_progress_bar()
    return policy_and_encoder(Pretrained(path, **settings), Prompts())


def draw_questions(count: int, seed: int = 0) -> list[Sample]:
    """Paired held-out questions of the tiny world."""
    drawn = draw_samples(World("val", 2 * count + 2, seed))  # one of five is not paired
    return list(islice((sample for sample in drawn if sample.kind == "paired"), count))


def read_questions(shards: str, count: int) -> list[Sample]:
    """The first paired samples of shards; UserError if there are no shards."""
    found = read_samples(find_shards(shards), ("paired",))
    return [item.sample for item in islice((i for i in found if isinstance(i, ShardedSample)), count)]
