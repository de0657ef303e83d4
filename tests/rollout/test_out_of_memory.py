"""Memory that runs out: what was made is freed, what is decoded or scored is split, with the same
results; and memory is not held longer than it is needed."""

import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.background import in_background
from ivgr.core.errors import UserError
from ivgr.core.memory import unless_out_of_memory
from ivgr.core.query import rollouts_of
from ivgr.packing.prefix_tree import Pack
from ivgr.rollout import branch_kv
from ivgr.rollout.branch_kv import DenseKV
from ivgr.rollout.branches import Branches
from ivgr.rollout.cuda_graph import CUDAGraphStep
from ivgr.rollout.engine_timeout import TimeoutEngine
from ivgr.rollout.prefix_kv_cache import TreeCache
from ivgr.rollout.responses import Responses
from ivgr.rollout.room import PREFIXES, SHARE, token_bytes
from ivgr.rollout.sampling import Sampling, SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.trainer.policy_update import PolicyUpdate
from support.checkpoints import CONFIG, SMALL
from support.families import Words, make_tree, tiny_family
from support.launch import rollouts
from support.one_iteration import Run

GROWTH = 4  # tokens by which suffixes grow here, so that short responses grow twice
LIMIT = GROWTH + 6


@pytest.fixture(scope="module", autouse=True)
def small_room():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branch_kv, "GROWTH", GROWTH)
        yield


def no_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.31 GiB (pretended)")


@pytest.fixture(scope="module")
def model():
    model = tiny_family("qwen2_vl")
    model.generation_config.eos_token_id = [7, 11]
    return model


BRANCHES = (6, 6, 3, 6, 3)  # of five queries, three a group


def queries_of(model):
    generator = torch.Generator().manual_seed(3)
    return [make_tree(model, generator, [(1, 2)], n // 3, [[]] * (n // 3)) for n in BRANCHES]


def roll_out(model, engine=None):
    engine = engine or TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=LIMIT))
    queries = queries_of(model)
    engine.roll_out(model, Words(), queries, seed=4)
    return rollouts_of(queries)


@pytest.fixture(scope="module")
def whole(model):
    """Rollouts of all queries at once, which no memory runs out for."""
    return roll_out(model)


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.tokens, other.tokens) and one.text == other.text
        assert one.truncated == other.truncated
        torch.testing.assert_close(one.logp, other.logp, rtol=0, atol=1e-5)


def test_a_call_that_runs_out_of_memory_leaves_nothing(monkeypatch):
    made, freed = [], []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(made[-1]() is None))

    def call(make_error=None):
        tensor = torch.zeros(3)
        made.append(weakref.ref(tensor))
        if make_error:
            raise make_error()
        return tensor

    def cublas():
        return RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    def shapes():
        return RuntimeError("shapes do not match")

    gc.disable()
    try:
        assert unless_out_of_memory(lambda: call(no_memory)) is None and freed == [True]
        assert unless_out_of_memory(lambda: torch.empty(1 << 55)) is None
        assert unless_out_of_memory(lambda: call(cublas)) is None and len(freed) == 3
        with pytest.raises(RuntimeError, match="shapes"):
            unless_out_of_memory(lambda: call(shapes))
        assert torch.equal(unless_out_of_memory(call), torch.zeros(3))
    finally:
        gc.enable()


def refuse(counts, monkeypatch, owner, name, over):
    """Memory runs out in calls of owner.name for which over(*arguments) is larger than the limit in
    counts; tried tells how large those were which began."""
    real = getattr(owner, name)

    def call(self, *arguments, **options):
        size = over(self, *arguments, **options)
        if size is not None and size > counts["limit"]:
            counts["failed"].append(size)
            raise no_memory()
        return real(self, *arguments, **options)

    monkeypatch.setattr(owner, name, call)


# Where memory may run out, and how many branches are then at work, or have a row.
DEPTHS = {
    "prefill": (Pack, "hidden", lambda self, *_, tree_cache=None, **__: 5 * len(self.queries)),
    "first room": (TreeCache, "__init__", lambda self, size, device: size.branches),
    "first token": (TreeCache, "place", lambda self, rows, *_: len(rows)),
    "first growth": (
        DenseKV,
        "reserve",
        lambda self, tokens: self.branches if set(tokens.values()) == {1} else None,
    ),
    "second growth": (
        DenseKV,
        "reserve",
        lambda self, tokens: len(tokens) if GROWTH + 1 in tokens.values() else None,
    ),
    "middle of a step": (
        TreeCache,
        "attend",
        lambda self, module, query, *_: len(query) if query.shape[2] == 1 and module.layer_idx else None,
    ),
    "leaving the batch": (TreeCache, "select", lambda self, *_: self.size.branches),
}


# The smaller the parts the longer it takes: one branch at a time at one depth.
PARTS = [(depth, 13) for depth in DEPTHS] + [("middle of a step", 1), ("prefill", 5)]
SLOW = [(depth, limit) for depth in DEPTHS for limit in (4, 1) if depth != "prefill"]
# What is left for a batch of three may end without one leaving it; the next rollout would be refused again.
SLOW = [case for case in SLOW if case not in PARTS and case != ("leaving the batch", 1)]


@pytest.mark.parametrize(
    ("depth", "limit"), PARTS + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
)
def test_a_rollout_that_does_not_fit_is_decoded_in_parts_with_the_same_tokens(
    model, whole, monkeypatch, caplog, depth, limit
):
    counts = {"limit": limit, "failed": []}
    refuse(counts, monkeypatch, *DEPTHS[depth])
    engine = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=LIMIT))
    same(roll_out(model, engine), whole)
    assert counts["failed"] and all(size > limit for size in counts["failed"])
    told = [record.getMessage() for record in caplog.records if record.name == "ivgr"]
    assert len(told) == len(counts["failed"]) and all("memory ran out for" in line for line in told)
    failures = len(counts["failed"])
    same(roll_out(model, engine), whole)
    assert len(counts["failed"]) == failures  # for the rest of the run


def test_whole_queries_part_first_and_then_a_querys_branches(model, monkeypatch):
    begun = []
    begin = Branches._begin

    def record(self, pack, seated):
        begun.append([len(one.rows) for one in seated])
        if self.cache.size.branches > 4:
            raise no_memory()
        begin(self, pack, seated)

    monkeypatch.setattr(Branches, "_begin", record)
    roll_out(model)
    # 24 branches, then room for 12, 6 and 3 of them; three a time, a query's first three and last three.
    assert begun[:4] == [[6, 6, 3, 6, 3], [6, 6], [6], [3]]
    assert begun[3:] == [[3]] * 8


def test_what_was_done_before_memory_ran_out_is_not_decoded_again(model, whole, monkeypatch):
    """Memory runs out once, after some responses have ended."""
    begun, step = [], Branches._step
    begin = Responses.begin
    monkeypatch.setattr(
        Responses, "begin", lambda self, numbers: (begun.extend(numbers.tolist()), begin(self, numbers))
    )

    failed = []

    def fail_once(self):
        if self.steps == 6 and not failed:
            failed.append(True)
            raise no_memory()
        step(self)

    monkeypatch.setattr(Branches, "_step", fail_once)
    same(roll_out(model), whole)
    ended = {number for number, rollout in enumerate(whole) if len(rollout.tokens) <= 7}
    again = set(range(len(whole))) - ended
    assert ended and again and sorted(begun) == sorted([*range(len(whole)), *again])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tokens_do_not_depend_on_who_shares_the_batch(model, whole, size):
    engine = TransformersEngine(SamplingConfig(group_size=3, max_new_tokens=LIMIT), batch_queries=size)
    same(roll_out(model, engine), whole)


@pytest.mark.parametrize("room", [1, 40, 400, 4000])
def test_as_many_decode_together_as_free_memory_holds(model, whole, monkeypatch, room):
    """`room`: tokens for which there is memory."""
    sizes, init = [], TreeCache.__init__
    monkeypatch.setattr(
        TreeCache, "__init__", lambda self, size, device: (sizes.append(size), init(self, size, device))[1]
    )
    monkeypatch.setattr(
        "ivgr.rollout.room.free_bytes", lambda device: room / SHARE * token_bytes(model.config, model.dtype)
    )
    same(roll_out(model), whole)
    (size,) = sizes
    taken = size.prefixes * size.width + size.branches * size.limit
    assert taken <= room or size.branches == 1
    most = taken + PREFIXES * size.width + size.siblings * size.limit  # with another query
    assert size.branches == len(whole) or most > room


def test_a_token_takes_what_the_cache_holds_of_it(model, monkeypatch):
    held = []
    select = TreeCache.select

    def look(self, rows, prefixes):
        size = self.size
        pairs = [(self.prefix_kv, size.prefixes * size.width), (self.branches.kv, self.branches.bias.numel())]
        held.extend(sum(part.nbytes for pair in kv for part in pair) / tokens for kv, tokens in pairs)
        select(self, rows, prefixes)

    monkeypatch.setattr(TreeCache, "select", look)
    roll_out(model)
    assert set(held) == {token_bytes(model.config, model.dtype)}


def test_greedy_answers_and_one_query_at_a_time_part_too(model, monkeypatch):
    expected = queries_of(model)
    TransformersEngine(SamplingConfig(max_new_tokens=30)).answer(model, Words(), expected)
    counts = {"limit": 1, "failed": []}
    refuse(counts, monkeypatch, *DEPTHS["first growth"])
    for size in (64, 1):
        queries = queries_of(model)
        engine = TimeoutEngine(TransformersEngine(SamplingConfig(max_new_tokens=30), batch_queries=size), 60)
        engine.answer(model, Words(), queries)
        same(rollouts_of(queries), rollouts_of(expected))
    assert counts["failed"] == [8, 4, 2, 2]


def test_what_is_heard_of_a_part_begins_anew(model, monkeypatch):
    counts = {"limit": 4, "failed": []}
    refuse(counts, monkeypatch, *DEPTHS["middle of a step"])
    queries, heard = queries_of(model)[:1], []

    def listen(branches, tokens):
        heard.append((branches.tolist(), tokens.tolist()))

    engine = TransformersEngine(SamplingConfig(max_new_tokens=20))
    engine.respond(model, Words(), queries, Sampling(1.0, 0.99), 3, 0, listen)
    first = [int(rollout.tokens[0]) for rollout in rollouts_of(queries)]
    assert heard[0] == ([0, 1, 2, 3, 4, 5], first)  # which memory then ran out for
    assert heard[1] == ([0, 1, 2], first[:3])


def test_one_response_that_does_not_fit_names_the_settings(model, monkeypatch):
    refuse({"limit": 0, "failed": []}, monkeypatch, *DEPTHS["first growth"])
    with pytest.raises(
        UserError, match=r"one response .* prompt of \d+ tokens: lower max_new_tokens"
    ) as error:
        roll_out(model)
    assert "batch_queries" in str(error.value) and "\n" not in str(error.value)


def fit(root, *options):
    words = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    main(["fit", "--config", str(CONFIG), *words, "--trainer.default_root_dir", str(root), *options])
    return torch.load(root / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
def test_a_run_whose_response_does_not_fit_ends_in_one_line_and_goes_on(tmp_path, monkeypatch, capsys):
    expected = fit(tmp_path / "whole")
    capsys.readouterr()
    calls, respond = [], TransformersEngine.respond

    def fail_later(self, model, tokenizer, queries, sampling, *arguments):
        calls.append(sampling.temperature)
        if calls.count(1.0) == 2:  # in the second iteration
            refuse({"limit": 0, "failed": []}, small, *DEPTHS["first growth"])
        respond(self, model, tokenizer, queries, sampling, *arguments)

    with pytest.MonkeyPatch.context() as small:
        small.setattr(TransformersEngine, "respond", fail_later)
        with pytest.raises(SystemExit) as stop:
            fit(tmp_path / "run")
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("ivgr: error: memory ran out")
    assert "max_new_tokens" in error and "stopped after iteration 1; go on with --ckpt_path last" in error
    found = fit(tmp_path / "run", "--ckpt_path", "last")
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())
    assert rollouts(tmp_path / "run") == rollouts(tmp_path / "whole")


@contextlib.contextmanager
def without_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.parametrize("graphs", [False, True])
def test_no_cache_outlives_its_batch(tiny, monkeypatch, graphs):
    """Nor waits for Python to look for cycles, which it may do hours later."""
    alive, begun = [], []
    init, run = TreeCache.__init__, PolicyUpdate.run

    def made(self, *arguments):
        assert not any(cache() for cache in alive)
        alive.append(weakref.ref(self))
        init(self, *arguments)

    def update(self, mini_batches):
        begun.append(sum(cache() is not None for cache in alive))
        return run(self, mini_batches)

    def capture(self, step):
        self.graph, self.output = SimpleNamespace(replay=lambda: None), step()

    monkeypatch.setattr(TreeCache, "__init__", made)
    monkeypatch.setattr(PolicyUpdate, "run", update)
    monkeypatch.setattr(CUDAGraphStep, "_capture", capture)
    init_engine, init_branches = TransformersEngine.__init__, Branches.__init__
    monkeypatch.setattr(TransformersEngine, "__init__", lambda self, sampling: (
        init_engine(self, sampling, batch_queries=3)
    ))  # fmt: skip
    monkeypatch.setattr(Branches, "__init__", lambda self, *arguments, **options: (
        init_branches(self, *arguments, **options | {"graphs": graphs})
    ))  # fmt: skip
    with without_collection():
        for _ in range(2):
            Run(tiny)
    assert begun == [0, 0] and len(alive) == 2


def test_an_iteration_leaves_no_tensor_in_a_cycle(tiny):
    with without_collection():
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            run = Run(tiny, updates=2)
            gc.collect()
            kept = [type(thing) for thing in gc.garbage if isinstance(thing, torch.Tensor | TreeCache | Pack)]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
    assert kept == [] and run.metrics


def test_a_call_that_fails_in_the_background_is_let_go():
    def call(holder):
        raise ValueError("its own")

    with without_collection():
        holder = torch.zeros(3)
        seen = weakref.ref(holder)
        future = in_background(call, holder)
        with pytest.raises(ValueError, match="its own"):
            future.result(30)
        del future, holder
        assert seen() is None
