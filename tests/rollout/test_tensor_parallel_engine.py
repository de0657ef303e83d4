"""Ranks that share one copy of the policy give the rollouts of a rank that has it whole."""

import copy
import os
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.core.seeding import derive_seed
from ivgr.data.encode import QueryEncoder
from ivgr.distributed.collectives import gather, sum_ranks
from ivgr.distributed.tensor_parallel import as_first
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout import room
from ivgr.rollout.branches import Branches
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.fused_step import FusedStep
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.tensor_parallel_engine import with_tensor_parallel
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.rollout.vllm_engine import VLLMEngine
from ivgr.rollout.zero_std import resample_zero_std
from ivgr.tools.probes.probe_callback import Probing
from ivgr.toy.world import World, draw_samples
from ivgr.trainer.fsdp_strategy import FSDP2
from support.ranks import on_ranks

pytestmark = pytest.mark.multiprocess

SEED = 8


class Shared:
    """The tiny policy, whole and split over the ranks of `mesh`, and queries with a place in the iteration;
    those of this rank are every second one."""

    def __init__(self, mesh, count=6):
        model, processor = Pretrained("tiny").load()
        encode = QueryEncoder(processor, "qwen2_vl", Prompts())
        self.tokenizer, self.whole = processor.tokenizer, model.eval()
        self.queries = [encode(sample) for sample in draw_samples(World("train", count, seed=5))]
        for place, query in enumerate(self.queries):
            query.sample_index = place
        self.mine = self.queries[dist.get_rank() :: 2]
        strategy = FSDP2(rollout_tensor_parallel=2)
        strategy._device_mesh = mesh
        self.replica = strategy.split(copy.deepcopy(model), None)
        self.alone = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=40))
        self.engine = with_tensor_parallel(self.alone, self.replica.parts.tp_group)
        self.policy = self.replica.sync()

    def same(self, found, answer=False):
        """Fails unless `found` have the rollouts that they get of the whole policy, alone."""
        expected = copy.deepcopy(found)
        for group in (group for query in expected for group in query.groups):
            group.rollouts = []
        if answer:
            self.alone.answer(self.whole, self.tokenizer, expected)
        else:
            self.alone.roll_out(self.whole, self.tokenizer, expected, SEED)
        pairs = list(zip(rollouts_of(found), rollouts_of(expected), strict=True))
        for own, other in pairs:
            assert own.text == other.text and torch.equal(own.tokens, other.tokens)
            torch.testing.assert_close(own.logp, other.logp, rtol=0, atol=1e-4)
            torch.testing.assert_close(own.sampling_logp, other.sampling_logp, rtol=0, atol=1e-4)
        return [own for own, _ in pairs]


def rolls_out_as_one(mesh):
    shared = Shared(mesh)
    shared.engine.roll_out(shared.policy, shared.tokenizer, shared.mine, SEED)
    own = shared.same(shared.mine)
    everyone = [tuple(rollout.tokens.tolist()) for part in gather(own) for rollout in part]
    assert len(everyone) > 30 and len(set(everyone)) > 20
    # Tokens that end at different places, on both ranks.
    assert len({len(tokens) for tokens in everyone}) > 5
    # One rank has nothing to roll out.
    queries = shared.queries[:3] if dist.get_rank() == 1 else []
    for group in (group for query in queries for group in query.groups):
        group.rollouts = []
    shared.engine.roll_out(shared.policy, shared.tokenizer, queries, SEED)
    assert len(shared.same(queries)) == 3 * sum(len(query.groups) for query in queries)


def test_two_ranks_roll_out_as_one_that_has_the_whole_policy(tmp_path):
    on_ranks(rolls_out_as_one, tmp_path)


def rolls_out_by_the_kernels(mesh):
    """As on a GPU: the fused step, and pages for this rank's heads alone."""
    shared, steps = Shared(mesh, 3), []
    shared.alone.sampling = SamplingConfig(group_size=2, max_new_tokens=6)
    queries = shared.queries[:2] if dist.get_rank() == 0 else shared.queries[2:3]
    logits = FusedStep.logits
    FusedStep.logits = lambda *arguments: steps.append(arguments[-1].branches) or logits(*arguments)
    os.environ["IVGR_KERNELS"] = "triton"
    shared.engine.roll_out(shared.policy, shared.tokenizer, queries, SEED)
    os.environ["IVGR_KERNELS"] = "torch"
    assert shared.same(queries) and len(steps) > 3
    heads = shared.whole.config.get_text_config().num_key_value_heads
    assert all(keys.shape[1] == heads // 2 for keys, _ in steps[0].kv)


@pytest.mark.slow
def test_the_kernels_serve_a_part_of_the_heads(tmp_path):
    on_ranks(rolls_out_by_the_kernels, tmp_path)


def answers_as_one(mesh):
    """Rank 0 needs two calls and then three, rank 1 one and then none; between them all ranks meet."""
    shared = Shared(mesh)
    rank = dist.get_rank()
    for batches in ([shared.queries[:2], shared.queries[2:3]], 3 * [shared.queries[4:5]]):
        if rank == 1:
            batches = [shared.queries[3:4]] if len(batches) == 2 else []
        for batch in batches:
            asked = copy.deepcopy(batch)
            shared.engine.answer(shared.policy, shared.tokenizer, asked)
            assert shared.same(asked, answer=True)
        shared.engine.join(shared.policy, shared.tokenizer)
        assert sum(gather(len(batches))) == 3


@pytest.mark.slow
def test_ranks_may_ask_for_answers_unequally_often(tmp_path):
    on_ranks(answers_as_one, tmp_path)


def resamples_as_one(mesh):
    """Only rank 0 has groups whose rewards are all equal; one of them is not after the first round."""
    shared = Shared(mesh)
    rank, rounds = dist.get_rank(), []

    def roll_out(queries, seed):
        rounds.append((len(queries), seed))
        shared.engine.roll_out(shared.policy, shared.tokenizer, queries, seed)
        again = copy.deepcopy(queries)
        for group in (group for query in again for group in query.groups):
            group.rollouts = []
        shared.alone.roll_out(shared.whole, shared.tokenizer, again, seed)
        texts = [[rollout.text for rollout in rollouts_of(found)] for found in (queries, again)]
        assert texts[0] == texts[1]

    def score(queries):
        flat = rank == 0 and len(rounds) != 2
        for number, rollout in enumerate(rollouts_of(queries)):
            rollout.reward = 0.0 if flat or (rank == 0 and number < 3) else float(number % 2)

    roll_out(shared.mine, SEED)
    score(shared.mine)
    total = partial(sum_ranks, device=torch.device("cpu"))
    figures = resample_zero_std(shared.mine, 2, SEED, roll_out, score, total)
    seeds = [SEED, *(derive_seed(SEED, "resample", number) for number in (1, 2))]
    assert [seed for _, seed in rounds] == seeds
    assert [count for count, _ in rounds] == ([3, 3, 1] if rank == 0 else [3, 0, 0])
    assert figures["rollout/resampled"] == 1 + sum(
        gather(sum(len(query.groups) for query in shared.mine) * (rank == 0))
    )


@pytest.mark.slow
def test_a_rank_without_flat_groups_takes_part_in_resampling(tmp_path):
    on_ranks(resamples_as_one, tmp_path)


def keeps_step(mesh):
    """Though one rank has less memory free, and though it finds other numbers."""
    shared = Shared(mesh)
    rank = dist.get_rank()
    sizes, make = [], Branches.__init__

    def note(self, model, responses, rows, size, **options):
        sizes.append(size)
        make(self, model, responses, rows, size, **options)

    Branches.__init__ = note
    each = room.token_bytes(shared.whole.config, torch.float32, 2)
    assert each * 2 == room.token_bytes(shared.whole.config, torch.float32)
    room.free_bytes = lambda device: (2000 if rank else 1 << 20) * each / room.SHARE
    shared.engine.roll_out(shared.policy, shared.tokenizer, shared.mine, SEED)
    shared.same(shared.mine)
    first, second = gather(sizes[0])
    assert first == second and first.branches < 3 * sum(len(query.groups) for query in shared.queries)

    logp = torch.tensor([-0.25, -torch.inf, -1 / 3]) * (rank + 1)
    token, logp = as_first(shared.replica.parts.tp_group, (torch.tensor([5, 6, 151_935]) + rank, logp))
    assert token.tolist() == [5, 6, 151_935] and token.dtype == torch.long
    assert torch.equal(logp, torch.tensor([-0.25, -torch.inf, -1 / 3]))

    def no_memory(self):
        raise torch.OutOfMemoryError("pretended")

    Branches.decode = no_memory
    with pytest.raises(UserError) as error:
        shared.engine.roll_out(shared.policy, shared.tokenizer, shared.mine, SEED)
    assert "model.engine.batch_queries, which is 64, to " in str(error.value)
    assert "trainer.strategy.rollout_tensor_parallel" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_ranks_that_share_a_copy_keep_step(tmp_path):
    on_ranks(keeps_step, tmp_path)


def is_filled_in_parts(mesh):
    """A rank's copy has the bytes of its parts; the copy that is exported is whole, and computes alone."""
    shared = Shared(mesh, 1)
    names = [name for name, _ in shared.whole.named_parameters()]
    halved = [name for name in names if "language_model.layers." in name and "_proj" in name]
    for _ in range(2):
        for (name, own), weight in zip(
            shared.replica.sync().named_parameters(), shared.whole.parameters(), strict=True
        ):
            assert own.untyped_storage().nbytes() == weight.nbytes // (2 if name in halved else 1), name
        shared.replica.invalidate()
        assert all(own.is_meta for own in shared.replica.model.parameters())
    exported = shared.replica.gather_to_cpu(keep=True)
    for own, weight in zip(exported.parameters(), shared.whole.parameters(), strict=True):
        assert torch.equal(own, weight)
    if dist.get_rank() == 0:
        shared.alone.roll_out(shared.whole, shared.tokenizer, shared.queries, SEED)
        (pack,) = pack_queries(shared.whole, shared.queries, budget=1 << 40)
        with torch.no_grad():
            assert torch.equal(pack.response_hidden(exported), pack.response_hidden(shared.whole))


@pytest.mark.slow
def test_a_copy_is_filled_in_parts_and_exported_whole(tmp_path):
    on_ranks(is_filled_in_parts, tmp_path)


def test_vllm_takes_whole_weights():
    for engine in (VLLMEngine(), TimeoutEngine(VLLMEngine(), 60)):
        assert with_tensor_parallel(engine, None) is engine
        with pytest.raises(UserError, match="which VLLMEngine takes whole: set it to 1"):
            with_tensor_parallel(engine, object())


def test_probes_read_whole_layers():
    trainer = SimpleNamespace(strategy=FSDP2(rollout_tensor_parallel=2))
    with pytest.raises(UserError, match="set that to 1, or remove the callback"):
        Probing().setup(trainer, SimpleNamespace(kind="rl"), "fit")
