import random
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ivgr.core.errors import UserError
from ivgr.core.rejection import Rejection
from ivgr.data.shards import write_shards
from ivgr.data.stream import BatchComposition, SampleStream, WeightedSource
from ivgr.data.tar import Slice
from ivgr.data.weighted_sampling import weighted_round_robin
from support.samples import make_sample

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
SHARDS, PAIRED, SINGLE = 6, 5, 3
MIX = BatchComposition(2, 1)
calm = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**63 - 1)
buffers = st.integers(0, 40)


def write(folder: Path, shards: int, paired: int = PAIRED, single: int = SINGLE) -> list[str]:
    """Each shard holds `paired` and `single` samples in turn; ids read kind-shard-index."""
    written = []
    for shard in range(shards):
        kinds = [(kind, i) for i in range(8) for kind, n in (("paired", paired), ("single", single)) if i < n]
        samples = [make_sample(f"{k}-{shard}-{i}", kind=k, images=(b"image",)) for k, i in kinds]
        [path] = write_shards(folder / str(shard), "train", samples, 100)
        written.append(str(path))
    return written


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> list[str]:
    return write(tmp_path_factory.mktemp("shards"), SHARDS)


def ids(drawn: list) -> list[str]:
    return [item.sample.id for item in drawn]


def take(stream, iterations: int) -> list[list[str]]:
    return [ids(batch) for batch in islice(iter(stream), iterations)]


def load(stream: SampleStream, workers: int, iterations: int) -> list[list[str]]:
    context = "fork" if workers else None
    loader = DataLoader(
        stream, batch_size=None, num_workers=workers, multiprocessing_context=context, collate_fn=ids
    )
    return list(islice(iter(loader), iterations))


def flat(batches: list[list[str]], kind: str) -> list[str]:
    return [name for batch in batches for name in batch if name.startswith(kind)]


def all_ids(shards: int = SHARDS) -> list[str]:
    return [f"paired-{shard}-{i}" for shard in range(shards) for i in range(PAIRED)]


def test_the_papers_prompts_make_230_paired_and_52_single_queries():
    assert BatchComposition.of(512, 0.9) == BatchComposition(230, 52)


@given(st.integers(1, 2000).map(lambda half: 2 * half), st.floats(0, 1))
def test_a_paired_query_counts_two_prompts_of_its_share(prompts, ratio):
    mix = BatchComposition.of(prompts, ratio)
    assert 2 * mix.paired + mix.single == prompts and min(mix.paired, mix.single) >= 0
    assert abs(2 * mix.paired - prompts * ratio) <= 1 + 1e-9


@given(st.integers(1, 2000).map(lambda half: 2 * half), st.floats(0, 0.99))
def test_in_one_stream_a_paired_query_counts_one_prompt(prompts, ratio):
    """So that as many responses are sampled and as many of them single."""
    one, two = BatchComposition.of(prompts, ratio, streams=1), BatchComposition.of(prompts, ratio)
    assert one.paired + one.single == prompts and min(one.paired, one.single) >= 0
    assert abs(one.single - two.single) <= 1


@given(st.integers(1, 2000))
def test_ratio_zero_asks_for_single_queries_only(prompts):
    assert BatchComposition.of(prompts, 0.0) == BatchComposition(0, prompts)


@given(st.integers(1, 2000))
def test_ratio_one_never_asks_for_a_single_query(prompts):
    try:
        assert BatchComposition.of(prompts, 1.0).single == 0
    except UserError as error:
        assert prompts % 2 and "data.prompts" in str(error)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_ratio_that_is_no_share_is_named(ratio):
    with pytest.raises(UserError, match=r"data\.paired_ratio is .*from 0 to 1"):
        BatchComposition.of(512, ratio)


@pytest.mark.parametrize("prompts", [0, -2])
def test_a_number_of_prompts_below_one_is_named(prompts):
    with pytest.raises(UserError, match=r"data\.prompts"):
        BatchComposition.of(prompts, 0.5)


@calm
@given(seed=seeds, buffer=buffers, paired=st.integers(0, 7), single=st.integers(0, 7))
def test_every_iteration_holds_the_mix(shards, seed, buffer, paired, single):
    for batch in take(
        SampleStream([WeightedSource(shards)], BatchComposition(paired, single), seed, buffer), 6
    ):
        assert Counter(name.split("-")[0] for name in batch) == Counter(paired=paired, single=single)


@calm
@given(seed=seeds, buffer=buffers)
def test_every_sample_of_a_kind_is_seen_once_an_epoch(shards, seed, buffer):
    batches = take(SampleStream([WeightedSource(shards)], BatchComposition(2, 3), seed, buffer), 45)
    for kind, count in (("paired", SHARDS * PAIRED), ("single", SHARDS * SINGLE)):
        seen = flat(batches, kind)
        epochs = [seen[start : start + count] for start in range(0, len(seen) - count + 1, count)]
        assert len(epochs) >= 3 and all(sorted(epoch) == sorted(set(seen)) for epoch in epochs)
        assert len(set(seen)) == count


@calm
@given(seed=seeds)
def test_every_epoch_has_its_own_order_of_shards(shards, seed):
    seen = flat(
        take(SampleStream([WeightedSource(shards)], BatchComposition(PAIRED, 0), seed, 1), 5 * SHARDS),
        "paired",
    )
    orders = [[name.split("-")[1] for name in seen[i : i + 30 : PAIRED]] for i in range(0, 150, 30)]
    assert all(sorted(order) == list("012345") for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_every_epoch_and_seed_has_its_own_order_of_samples(shards):
    epochs = take(SampleStream([WeightedSource(shards[:1])], BatchComposition(PAIRED, 0), 5, 100), 12)
    assert len(set(map(tuple, epochs))) > 4
    firsts = {
        take(SampleStream([WeightedSource(shards[:1])], BatchComposition(1, 0), seed, 100), 1)[0][0]
        for seed in range(60)
    }
    assert firsts == set(all_ids(1))


def test_a_buffer_mixes_samples_of_several_shards(shards):
    batches = take(SampleStream([WeightedSource(shards)], BatchComposition(PAIRED, 0), 3, 1000), SHARDS)
    assert any(len({name.split("-")[1] for name in batch}) > 1 for batch in batches)


def test_the_seed_alone_decides_the_order(shards):
    first = take(SampleStream([WeightedSource(shards)], MIX, 7, 20), 30)
    random.seed(12345)
    before = random.getstate()
    assert take(SampleStream([WeightedSource(shards)], MIX, 7, 20), 30) == first
    assert random.getstate() == before
    assert take(SampleStream([WeightedSource(shards)], MIX, 8, 20), 30) != first


@calm
@given(seed=seeds, buffer=buffers, ranks=st.integers(2, 6), count=st.integers(4, 6))
def test_ranks_share_out_every_epoch(shards, seed, buffer, ranks, count):
    """Whatever the shards a rank gets, an epoch of all ranks is every sample once."""
    ranks = min(ranks, count)
    epochs: list[Counter] = [Counter(), Counter(), Counter()]
    for rank in range(ranks):
        size = PAIRED * len(range(rank, count, ranks))
        stream = SampleStream(
            [WeightedSource(shards[:count])], BatchComposition(1, 0), seed, buffer, rank, ranks
        )
        seen = flat(take(stream, 3 * size), "paired")
        for epoch, start in zip(epochs, range(0, 3 * size, size), strict=True):
            epoch.update(seen[start : start + size])
    assert all(epoch == Counter(all_ids(count)) for epoch in epochs)


@calm
@given(seed=seeds, buffer=buffers, start=st.integers(0, 70), rank=st.integers(0, 1))
def test_a_resumed_run_sees_what_the_unbroken_run_would(shards, seed, buffer, start, rank):
    unbroken = take(SampleStream([WeightedSource(shards)], MIX, seed, buffer, rank, 2), start + 8)
    assert (
        take(SampleStream([WeightedSource(shards)], MIX, seed, buffer, rank, 2, start), 8) == unbroken[start:]
    )


@pytest.mark.parametrize("workers", [2, 3])
def test_a_resumed_loader_sees_what_the_unbroken_loader_would(shards, workers):
    for rank, start in ((0, 1), (1, 12), (1, 31)):
        unbroken = load(SampleStream([WeightedSource(shards)], MIX, 11, 20, rank, 2), workers, 38)
        resumed = load(
            SampleStream([WeightedSource(shards)], MIX, 11, 20, rank, 2, start), workers, 38 - start
        )
        assert resumed == unbroken[start:]


def test_workers_of_all_ranks_share_out_the_epoch(shards):
    """Six readers of one shard each: five paired samples a reader make the epoch."""
    batches = [
        load(SampleStream([WeightedSource(shards)], BatchComposition(PAIRED, 1), 4, 20, rank, 2), 3, 6)
        for rank in (0, 1)
    ]
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(flat(batches[0][epoch] + batches[1][epoch], "paired")) == sorted(all_ids())


@pytest.mark.parametrize(("kind", "counts"), [("paired", (0, 3)), ("single", (3, 0))])
def test_a_kind_that_a_reader_lacks_is_named_with_its_shards(tmp_path, kind, counts):
    shards = write(tmp_path, 2, *counts)
    with pytest.raises(UserError) as caught:
        take(SampleStream([WeightedSource(shards)], MIX, 0, 10), 1)
    message = str(caught.value)
    assert repr(kind) in message and "\n" not in message and all(path in message for path in shards)


def test_a_kind_that_no_one_asks_for_may_be_absent(tmp_path):
    assert (
        len(take(SampleStream([WeightedSource(write(tmp_path, 2, 3, 0))], BatchComposition(2, 0), 0, 10), 5))
        == 5
    )


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(1, 400), st.integers(0, 9))
def test_sources_are_never_a_whole_turn_from_their_share(weights, turns, seed):
    dealt = Counter()
    for turn, chosen in enumerate(islice(weighted_round_robin(weights, seed), turns), 1):
        dealt[chosen] += 1
        assert all(abs(dealt[i] - turn * w / sum(weights)) < 1 + 1e-6 for i, w in enumerate(weights))


@pytest.fixture(scope="module")
def feeds(shards) -> list[WeightedSource]:
    """Weights 5 : 2 : 1 over two shards each; the last holds paired samples only."""
    kinds = ("paired", "single")
    return [
        WeightedSource(shards[:2], 5, kinds),
        WeightedSource(shards[2:4], 2, kinds),
        WeightedSource(shards[4:], 1, ("paired",)),
    ]


def origins(batches: list[list[str]], kind: str) -> Counter:
    return Counter(int(name.split("-")[1]) // 2 for name in flat(batches, kind))


@calm
@given(seed=seeds, buffer=buffers, iterations=st.integers(1, 60), rank=st.integers(0, 1))
def test_after_any_iteration_the_counts_follow_the_weights(feeds, seed, buffer, iterations, rank):
    batches = take(SampleStream(feeds, BatchComposition(3, 2), seed, buffer, rank, 2), iterations)
    for kind, wanted, weights in (("paired", 3, (5, 2, 1)), ("single", 2, (5, 2, 0))):
        seen = origins(batches, kind)
        for source, weight in enumerate(weights):
            assert abs(seen[source] - iterations * wanted * weight / sum(weights)) < 1


def test_eight_turns_of_three_sources_are_exact(feeds):
    assert origins(take(SampleStream(feeds, BatchComposition(4, 0), 1, 10), 6), "paired") == {
        0: 15,
        1: 6,
        2: 3,
    }


@calm
@given(seed=seeds, start=st.integers(0, 40))
def test_a_resumed_run_deals_as_the_unbroken_run_would(feeds, seed, start):
    unbroken = take(SampleStream(feeds, MIX, seed, 10), start + 8)
    assert take(SampleStream(feeds, MIX, seed, 10, start=start), 8) == unbroken[start:]


def test_reader_processes_together_follow_the_weights_and_resume(feeds):
    unbroken = load(SampleStream(feeds, BatchComposition(4, 0), 2, 10), 2, 24)
    assert all(abs(origins(unbroken[:n], "paired")[0] - 4 * n * 5 / 8) < 1 for n in range(1, 25))
    assert load(SampleStream(feeds, BatchComposition(4, 0), 2, 10, start=7), 2, 17) == unbroken[7:]


def test_a_broken_sample_keeps_its_place_in_the_order(tmp_path, shards):
    """The same shards with three answers emptied draw alike but for those three."""
    spoilt = []
    for shard in shards[:2]:
        data = Path(shard).read_bytes().replace(b'"answer": "red"', b'"answer": "   "', 3)
        spoilt.append(str(tmp_path / f"{len(spoilt)}.tar"))
        Path(spoilt[-1]).write_bytes(data)
    whole, broken = (
        list(islice(iter(SampleStream([WeightedSource(paths)], MIX, 3, 8)), 20))
        for paths in (shards[:2], spoilt)
    )
    lost = Counter()
    for good, drawn in zip(whole, broken, strict=True):
        for one, other in zip(good, drawn, strict=True):
            if isinstance(other, Rejection):
                lost[other.reason] += 1
                assert other.id == one.sample.id and other.shard in spoilt
            else:
                assert other.sample.id == one.sample.id
    assert set(lost) == {"answer: empty"} and lost.total() >= 6
    resumed = islice(iter(SampleStream([WeightedSource(spoilt)], MIX, 3, 8, start=5)), 15)
    assert list(resumed) == broken[5:]


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Sizes of the images that are read."""
    found: list[int] = []
    read = Slice.read

    def counted(slice_: Slice) -> bytes:
        found.append(slice_.size)
        return read(slice_)

    monkeypatch.setattr(Slice, "read", counted)
    return found


@pytest.mark.parametrize("start", [0, 1, 9, 40])
def test_images_are_read_of_what_is_drawn_alone(shards, reads, start):
    stream = SampleStream([WeightedSource(shards)], MIX, 5, 7, start=start)
    [batch] = islice(stream, 1)
    assert len(reads) == MIX.paired + MIX.single == len(batch)
    assert all(item.sample.images == (b"image",) for item in batch)
    reads.clear()
    whole = take(SampleStream([WeightedSource(shards)], MIX, 5, 7), start + 1)
    assert ids(batch) == whole[start] and len(reads) == 3 * (start + 1)


def test_draws_of_several_sources_say_whose_they_are(shards):
    feeds = [WeightedSource(shards[:3]), WeightedSource(shards[3:])]
    for batch in islice(SampleStream(feeds, MIX, 5, 7), 20):
        for item in batch:
            assert item.shard in feeds[item.source].shards
    assert all(item.source is None for item in next(iter(SampleStream(feeds[:1], MIX, 5, 7))))


def test_a_shard_that_is_gone_when_its_image_is_drawn_is_counted(tmp_path):
    shards = write(tmp_path, 1)
    stream = iter(SampleStream([WeightedSource(shards)], BatchComposition(2, 0), 5, 40))
    next(stream)
    Path(shards[0]).rename(tmp_path / "away.tar")
    assert [item.reason for item in next(stream)] == ["shard: unreadable"] * 2
