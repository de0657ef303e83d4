"""Memory of one GPU by phase, in bytes: a formula each, with its derivation in a line.

In: a `RunSpec`. Out: `MemoryItem`s. What stands throughout, and what the rollout and the update add,
of which the larger counts; and what a node needs of main memory.
"""

from dataclasses import dataclass, replace

from ivgr.data.dataloader import PREFETCH
from ivgr.rollout.branch_kv import EXPECTED
from ivgr.rollout.branches import PREFILL
from ivgr.rollout.room import PREFIXES, SHARE
from ivgr.tools.plan.run_spec import FP32, RunSpec

CHUNK = 320 << 20  # logits of a chunk of the head, on a GPU


@dataclass(frozen=True)
class MemoryItem:
    """phase: "throughout", "rollout" or "update", of a GPU; "host", of a node's main memory."""

    name: str
    phase: str
    bytes: float


def resident(run: RunSpec) -> list[MemoryItem]:
    """Returns what is in memory from beginning to end."""
    weights = run.shape.total * run.weight
    # Trained adapters stand beside the frozen weights.
    adapters = run.trained * run.trained_weight if run.rank else 0
    # With adapters the reference is the policy without them.
    reference = 0 if run.rank or run.cold_start else weights
    return [
        MemoryItem("weights", "throughout", (weights + adapters) / run.shards),
        MemoryItem("optimizer", "throughout", run.trained * run.states * run.trained_weight / run.shards),
        MemoryItem("reference", "throughout", reference / run.shards),
    ]


def rollout(run: RunSpec) -> list[MemoryItem]:
    """Returns what decoding a batch of queries adds; a cold start decodes one answer per stream."""
    shape, lengths, queries = run.shape, run.lengths, _queries_at_once(run)
    branches = queries * 2 * run.group
    tokens = min(queries * _prompt(run), max(PREFILL, _prompt(run)))  # of a prefill's pass
    patches = min(queries, max(1, PREFILL // _prompt(run))) * lengths.image_tokens * shape.merge
    # Logits, and their log-softmax, masked copy and softmax in fp32.
    sampling = branches * shape.vocabulary * (run.compute + 3 * FP32)
    return [
        MemoryItem("copy of the policy", "rollout", copy_bytes(run)),
        MemoryItem("KV cache", "rollout", cache_bytes(run)),
        MemoryItem("prefill", "rollout", _passing(run, tokens, patches)),
        MemoryItem("sampling", "rollout", sampling),
    ]


def copy_bytes(run: RunSpec) -> int:
    """Split weights are gathered once for all rollouts; of the decoder layers a part, where GPUs share
    them."""
    shape = run.shape
    held = shape.total - shape.layers + shape.layers // run.tp_ranks
    return held * run.compute if run.shards > 1 else 0


def cache_bytes(run: RunSpec) -> float:
    """The keys and values of the prompts that may be there at a time, and a pool of pages for the responses:
    room for the longest to all branches, if `cache_room` allows it, and to one in any case."""
    queries, longest = _queries_at_once(run), run.max_new_tokens
    prefixes = min(PREFIXES * queries, run.batch_queries if run.cold_start else _queries_in_all(run))
    prompts = kv_bytes(run, prefixes * _prompt(run))
    responses = min(kv_bytes(run, queries * 2 * run.group * longest), run.cache_room - prompts)
    return prompts + max(responses, kv_bytes(run, longest))


def fit_batch(run: RunSpec, free: float) -> RunSpec:
    """The run with the cache and as many queries decoded together as the engine takes where `free` bytes are
    left beside the policy, one at least."""
    room, reckoned = SHARE * free, min(run.max_new_tokens, EXPECTED)
    each = kv_bytes(run, PREFIXES * _prompt(run) + 2 * run.group * reckoned)
    queries = max(1, min(_queries_at_once(run), int(room // each)))
    return replace(run, batch_queries=queries, cache_room=room)


def kv_bytes(run: RunSpec, tokens: int) -> int:
    """A key and a value per token and layer, of this GPU's heads."""
    return 2 * run.shape.layers_count * run.shape.keys // run.tp_ranks * run.compute * tokens


def _queries_at_once(run: RunSpec) -> int:
    return run.batch_queries if run.cold_start else min(run.batch_queries, _queries_in_all(run))


def _queries_in_all(run: RunSpec) -> int:
    """Queries of an iteration on the GPUs that roll out together."""
    return run.tp_ranks * (run.paired + run.single)


def _prompt(run: RunSpec) -> int:
    return run.lengths.prefix + 2 * run.lengths.instruction


def update(run: RunSpec) -> list[MemoryItem]:
    """Returns what the largest micro-batch adds."""
    shape, trees, tree = run.shape, trees_at_once(run), largest_tree(run)
    tokens, responses = trees * tree.tokens, trees * tree.responses
    patches = trees * run.lengths.image_tokens * shape.merge
    # DDP keeps a second copy of the gradients, its buckets.
    copies = 2 if run.gpus > 1 and not run.sharded else 1
    # Sharded weights are gathered for use: two layers at a time, embedding and head.
    gathered = (2 * shape.layer + shape.words) * run.compute if run.shards > 1 else 0
    return [
        MemoryItem("gathered weights", "update", gathered),
        MemoryItem("gradients", "update", copies * run.trained * run.trained_weight / run.shards),
        MemoryItem("packs", "update", pack_bytes(run, patches)),
        MemoryItem("activations", "update", activation_bytes(run, tokens, patches)),
        MemoryItem("head", "update", head_bytes(run, responses)),
    ]


@dataclass(frozen=True)
class Tree:
    """Tokens of a tree, and those of its responses."""

    tokens: int
    responses: int


def largest_tree(run: RunSpec) -> Tree:
    """The largest tree of a micro-batch: a query's, one row's where nothing is shared, or as many responses
    with their prompt as the token budget holds."""
    lengths, streams = run.lengths, 2 if run.paired else 1
    if run.layout == "rows":
        return Tree(lengths.rows(1, 1), lengths.response)
    whole = lengths.tree(streams, run.group)
    if whole <= run.token_budget:
        return Tree(whole, streams * run.group * lengths.response)
    stem = lengths.prefix + lengths.instruction
    held = max(1, min(streams * run.group, (run.token_budget - stem) // max(lengths.response, 1)))
    return Tree(stem + held * lengths.response, held * lengths.response)


def trees_at_once(run: RunSpec) -> int:
    """Trees in a micro-batch: what the budget holds, one at least."""
    queries = run.paired + run.single
    here = -(-queries // run.updates) * (2 * run.group if run.layout == "rows" else 1)
    return max(1, min(run.token_budget // largest_tree(run).tokens, here))


def pack_bytes(run: RunSpec, patches: int) -> int:
    """Pixels of one micro-batch; ids, three positions and reach of all, of 8 bytes."""
    ids = (run.paired + run.single) * 40 * run.lengths.tree(2 if run.paired else 1, run.group)
    return patches * run.shape.features * run.compute + ids


def layer_bytes(run: RunSpec, tokens: int) -> int:
    """Returns the bytes that one decoder layer keeps for its backward pass.

    Two norms: their input in fp32, their normalised input, their output. Attention: queries,
    output, keys and values (as many as queries where heads share them), cos and sin, the fp32
    log-sum-exp. MLP: gate, its activation, up, product. With adapters each matrix's input in fp32.
    """
    shape, size = run.shape, run.compute
    seen = shape.queries if shape.repeats else shape.keys
    kept = 2 * (FP32 + 2 * size) * shape.hidden + 4 * size * shape.feed
    kept += size * (2 * shape.queries + 2 * seen + 2 * shape.queries // shape.heads) + FP32 * shape.heads
    if run.rank:
        kept += FP32 * shape.inputs
    if shape.normed:  # input in fp32 and normalised input
        kept += (FP32 + size) * (shape.queries + shape.keys)
    return tokens * kept


def activation_bytes(run: RunSpec, tokens: int, patches: int) -> int:
    """What is kept for the backward pass: every layer's and block's; with checkpointing their
    inputs, and the one at work. Then what stands around the layers."""
    shape = run.shape
    blocks, patches = (shape.tower_depth, patches) if run.trains_tower else (0, 0)
    layer, block = layer_bytes(run, tokens), block_bytes(run, patches)
    around = around_bytes(run, tokens, patches)
    if not run.checkpointing:
        return shape.layers_count * layer + blocks * block + around
    inputs = shape.layers_count * tokens * shape.hidden + blocks * patches * shape.tower_width
    return inputs * run.compute + max(layer, block) + around


def around_bytes(run: RunSpec, tokens: int, patches: int) -> int:
    """Embeddings before the layers and the norm behind them; each merger's norm, matrix and
    activation, and its result."""
    shape, size = run.shape, run.compute
    language = tokens * shape.hidden * (FP32 + 3 * size)
    merger = patches * (4 * shape.tower_width + shape.hidden // shape.merge) * size
    return language + shape.mergers * merger


def block_bytes(run: RunSpec, patches: int) -> int:
    """What one vision block keeps: two norms' inputs and outputs (as the language model's, where
    they are RMS norms), queries and keys turned, the projection they come from, output, MLP."""
    shape, size = run.shape, run.compute
    norms = 2 * (FP32 + 2 * size) if shape.tower_rms else 4 * size
    return patches * (shape.tower_width * (norms + 6 * size) + shape.tower_act * shape.tower_feed * size)


def head_bytes(run: RunSpec, responses: int) -> int:
    """A chunk of logits and, where the head is trained, its gradient summed in fp32."""
    shape, logits = run.shape, responses * run.shape.vocabulary * run.compute
    gradient = 0 if run.rank else shape.vocabulary * shape.hidden * FP32
    return min(CHUNK, logits) + gradient + responses * shape.hidden * run.compute


def _passing(run: RunSpec, tokens: int, patches: int) -> int:
    """A forward pass without gradients: the MLP's input, residual and norm, and three of its
    feed-forward tensors, of which GPUs that roll out together have a part each; of the language model or the
    tower, whichever is larger."""
    shape = run.shape
    language = tokens * (3 * shape.hidden + 3 * shape.feed // run.tp_ranks)
    tower = patches * (3 * shape.tower_width + 3 * shape.tower_feed)
    return max(language, tower) * run.compute


def host(run: RunSpec) -> list[MemoryItem]:
    """Returns what a node needs of main memory: the batches that readers have ready, the one that Lightning
    has drawn ahead and the one in use, which lie in /dev/shm; the pixels of the other ranks that roll out
    together; a split checkpoint while it is written, as tensors and as the bytes of a file."""
    shards = run.trained * run.trained_weight * (1 + run.states) if run.shards > 1 else 0
    batches = PREFETCH * run.workers + 2
    return [
        MemoryItem("batches in /dev/shm", "host", run.node_gpus * batches * batch_bytes(run)),
        MemoryItem("shared rollouts", "host", run.node_gpus * (run.tp_ranks - 1) * batch_bytes(run)),
        MemoryItem("checkpoint", "host", run.node_gpus * 2 * shards / run.shards),
    ]


def batch_bytes(run: RunSpec) -> int:
    """Pixels of an iteration's queries on a GPU, in the dtype of the vision tower."""
    patches = run.lengths.image_tokens * run.shape.merge
    return (run.paired + run.single) * patches * run.shape.features * run.compute
