"""What a micro-batch leaves on the device: PyTorch's meta device, from which nothing can be read, stands in
for a GPU, which the host would wait for."""

import copy
from types import SimpleNamespace

import pytest
import torch

from ivgr.core import transfer
from ivgr.kernels import TokenStatistics
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import pack_queries
from ivgr.toy import RuleJudge
from ivgr.trainer import FSDP2
from ivgr.trainer.loss import TokenLoss
from ivgr.trainer.metrics import UpdateMetrics
from ivgr.trainer.nonfinite_guard import NonFiniteGuard
from ivgr.trainer.rl_module import IVGR
from ivgr.trainer.sft_module import SFT
from support.families import FAMILIES, make_tree, tiny_family


def make_pack(family="qwen2_vl", device="cpu"):
    model, generator = tiny_family(family), torch.Generator().manual_seed(0)
    queries = [make_tree(model, generator, [(2, 2)], 2, [[3, 4], [2, 1]]) for _ in range(2)]
    (pack,) = pack_queries(copy.deepcopy(model).to(device), queries, 1 << 30)
    return pack


def found(pack, device="cpu"):
    """Random results of a pass."""
    generator = torch.Generator().manual_seed(1)
    count = len(pack.targets)
    logp, ref_logp, kl, entropy, loss = torch.randn(5, count, generator=generator).to(device)
    clipped = torch.rand(2, count, generator=generator).to(device) > 0.5
    statistics = TokenStatistics(logp, ref_logp, kl, entropy, loss=loss.sum())
    return statistics, TokenLoss(loss, logp.exp(), *clipped)


def test_an_updates_metrics_are_the_means_over_its_tokens():
    pack, metrics = make_pack(), UpdateMetrics()
    statistics, loss = found(pack)
    metrics.add(pack, statistics, loss, statistics.logp)
    metrics.add(pack, statistics, loss._replace(ratio=loss.ratio * 0.5), None)
    assert statistics.kl is not None and statistics.entropy is not None
    owners = [g.stream for q in pack.queries for g in q.groups for r in g.rollouts for _ in r.tokens]
    figures = metrics.compute()
    for stream in ("stream0", "stream1"):
        own = [float(kl) for kl, owner in zip(statistics.kl, owners, strict=True) if owner == stream]
        assert figures[f"{stream}/policy/kl"] == pytest.approx(sum(own) / len(own))
    assert figures["policy/entropy"] == pytest.approx(statistics.entropy.mean().item())
    assert figures["policy/clip_low"] == pytest.approx(loss.clipped_low.float().mean().item())
    assert figures["rollout/logp_mismatch"] == pytest.approx(statistics.logp.abs().mean().item())
    assert figures["policy/ratio_max"] == loss.ratio.max().item()


def test_a_ratio_that_is_nan_hides_no_other():
    pack, metrics = make_pack(), UpdateMetrics()
    statistics, loss = found(pack)
    for ratio in (loss.ratio, loss.ratio * torch.nan):
        metrics.add(pack, statistics, loss._replace(ratio=ratio), None)
    assert metrics.compute()["policy/ratio_max"] == loss.ratio.max().item()


def test_metrics_and_guard_read_nothing_per_pack():
    pack = make_pack(device="meta")
    statistics, loss = found(pack, "meta")
    metrics, guard = UpdateMetrics(), NonFiniteGuard()
    for _ in range(2):
        guard.watch(statistics)
        metrics.add(pack, statistics, loss, statistics.logp)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pack_crosses_in_one_copy_and_its_pictures_wait_on_the_host(family, monkeypatch):
    copies = []

    def count(tensor, device):
        copies.append(tensor)
        return tensor.to(device)

    monkeypatch.setattr(transfer, "send", count)
    pack, own = make_pack(family, "meta"), make_pack(family)
    assert len(copies) == 2  # one each
    for name in ("ids", "positions", "reach", "fork_row", "fork_column", "row", "column", "targets"):
        assert getattr(pack, name).is_meta and getattr(pack, name).shape == getattr(own, name).shape, name
    assert pack.pixels and pack.image_grid_thw is not None
    assert pack.pixels[0].device.type == pack.image_grid_thw.device.type == "cpu"
    assert pack.rollout_logp is pack.rollout_logp


@pytest.mark.parametrize("module", [IVGR, SFT])
def test_pixels_have_the_dtype_that_the_policy_computes_in(module):
    for dtype in ("float32", "bfloat16"):
        made = module(Pretrained("tiny", dtype), judge=RuleJudge())
        made.configure_model()
        assert made.encoder.pixel_dtype == made.policy.dtype == getattr(torch, dtype)
    made = module(Pretrained("tiny"), judge=RuleJudge())
    made.configure_model()
    for dtype, expected in (("bfloat16", torch.bfloat16), (None, torch.float32)):
        made._trainer = SimpleNamespace(strategy=FSDP2(param_dtype=dtype))
        assert made._compute_dtype() == expected
