"""What runs otherwise on a GPU (FlexAttention, low-precision GEMMs into fp32, CUDA graphs) gives what the
CPU gives. Needs a GPU; the kernels' own tests run on one, too, where there is one."""

import copy
import json

import pytest
import torch

from ivgr.cli.main import main
from ivgr.core.query import rollouts_of
from ivgr.kernels.paged_attention import PAGE
from ivgr.packing.prefix_tree import pack_queries
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from support.families import FAMILIES, Words, make_tree, tiny_family
from support.trees import gradients, tree_logps

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

# FlexAttention's CUDA kernels want heads of 16 numbers at least.
HEADS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 2, 2]},
}
LIMIT = PAGE + 40  # more than one page
IMAGES = [[(2, 2)], [(1, 3), (2, 1)], [], [(3, 3)]]


@pytest.fixture(scope="module", autouse=True)
def exact_convolutions():
    """In fp32 a GPU convolves (image patches) in TF32, unless told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(scope="module", params=FAMILIES)
def models(request):
    """The same weights on the CPU and on the GPU."""
    model = tiny_family(request.param, **HEADS)
    model.generation_config.eos_token_id = [7, 11]
    return model, copy.deepcopy(model).cuda()


def trees(model, lengths):
    generator = torch.Generator().manual_seed(3)
    return [make_tree(model, generator, images, len(lengths), lengths) for images in IMAGES]


def scored(model, queries):
    """Log-probs of all response tokens and the gradients of a weighted sum of them, on the CPU."""
    logps = tree_logps(model, queries, 1 << 40)
    return logps.detach().cpu(), {name: grad.cpu() for name, grad in gradients(model, logps).items()}


def test_trees_give_the_log_probs_and_gradients_of_the_cpu(models):
    cpu, gpu = models
    for lengths in ([[3, 40], [2, 90, 200]], [[1, 1], [5, 2]], [[130, 7, 300], [64, 128]]):
        queries = trees(cpu, lengths)
        (logp, grads), (expected, wanted) = scored(gpu, queries), scored(cpu, queries)
        torch.testing.assert_close(logp, expected, atol=1e-4, rtol=0)
        assert grads.keys() == wanted.keys()
        whole = torch.cat([grad.flatten() for grad in wanted.values()]).norm()
        for name, grad in wanted.items():
            assert (grads[name] - grad).norm() <= 1e-4 * grad.norm() + 1e-5 * whole, name


@pytest.mark.parametrize("graphs", [False, True], ids=["kernels", "graphs"])
def test_greedy_tokens_are_those_of_the_cpu(models, graphs):
    found = []
    for model, own in zip(models, (False, graphs), strict=True):
        queries = trees(model, [[], []])
        TransformersEngine(SamplingConfig(max_new_tokens=LIMIT), cuda_graphs=own).answer(
            model, Words(), queries
        )
        found.append([rollout.tokens.tolist() for rollout in rollouts_of(queries)])
    assert found[0] == found[1]


@pytest.mark.parametrize("graphs", [False, True], ids=["kernels", "graphs"])
def test_sampled_log_probs_equal_the_scoring_forward(models, graphs):
    _, model = models
    queries = trees(model, [[], []])
    engine = TransformersEngine(SamplingConfig(group_size=4, max_new_tokens=LIMIT), cuda_graphs=graphs)
    engine.roll_out(model, Words(), queries, seed=0)
    assert len({len(rollout.tokens) for rollout in rollouts_of(queries)}) > 3  # they leave at different steps
    (pack,) = pack_queries(model, queries, 1 << 40)
    with torch.no_grad():
        logp = tree_logps(model, queries, 1 << 40)
    torch.testing.assert_close(logp, pack.rollout_logp, atol=1e-4, rtol=0)


def test_a_run_begins_with_the_figures_of_the_cpu(tmp_path):
    folders = {kind: tmp_path / kind for kind in ("cpu", "gpu")}
    for kind, folder in folders.items():
        main(
            f"fit --config configs/tiny.yaml --trainer.accelerator {kind} --trainer.devices 1 "
            f"--trainer.default_root_dir {folder} --model.iterations 2 --data.train_count 100 "
            "--data.val_count 60 --data.val_queries 32 --model.engine.sampling.max_new_tokens 60".split()
        )
    cpu, gpu = (json.loads((folder / "summary.json").read_text()) for folder in folders.values())
    for stream, figures in cpu["before"].items():
        figures.pop("length")
        assert {name: gpu["before"][stream][name] for name in figures} == pytest.approx(figures, abs=0.05)
