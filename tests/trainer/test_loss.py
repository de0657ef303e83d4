"""The loss against closed forms and the published definitions."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.kernels import kl_estimate
from ivgr.trainer.advantage import group_advantages
from ivgr.trainer.loss import PolicyLossConfig, policy_loss


def one_token(ratio, advantage, kl=0.0, **settings):
    logp = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    result = policy_loss(logp, zero, zero + advantage, zero + kl, PolicyLossConfig(**settings))
    result.loss.sum().backward()
    return result.loss.item(), logp.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.56, 0.0),  # clipped at 1 + 0.28
        (0.5, 2.0, -1.0, -1.0),  # a fallen ratio may always recover
        (0.5, -2.0, 1.6, 0.0),  # clipped at 1 - 0.2
        (1.5, -2.0, 3.0, 3.0),
        (9.0, -2.0, 6.0, 0.0),  # dual clip: at most 3 |A|
    ],
)
def test_clip_regions_by_hand(ratio, advantage, loss, gradient):
    assert one_token(ratio, advantage) == pytest.approx((loss, gradient))


def test_kl_is_added_with_its_weight():
    assert one_token(1.0, 0.0, kl=3.0, kl_weight=0.5)[0] == pytest.approx(1.5)


@given(st.floats(0.01, 100), st.floats(-5, 5))
def test_loss_is_the_definition(ratio, advantage):
    clipped = min(max(ratio, 0.8), 1.28)
    expected = -min(ratio * advantage, clipped * advantage)
    if advantage < 0:
        expected = min(expected, -3 * advantage)
    assert one_token(ratio, advantage)[0] == pytest.approx(expected, abs=1e-9)


def test_importance_is_the_closed_form_and_carries_no_gradient():
    old = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    rollout = old - torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64).log()
    logp = (old + math.log(1.1)).requires_grad_()
    advantage, kl = torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64), torch.ones_like(old)
    settings = PolicyLossConfig(importance_cap=1.5, kl_weight=0.5)
    result = policy_loss(logp, old, advantage, kl, settings, rollout)
    result.loss.sum().backward()
    expected = [0.5 * (-2.2 + 0.5), 1.5 * (-2.2 + 0.5), 1.0 * (1.1 + 0.5)]
    assert result.loss.tolist() == pytest.approx(expected)
    assert logp.grad.tolist() == pytest.approx([0.5 * -2.2, 1.5 * -2.2, 1.1])
    assert result.importance.tolist() == pytest.approx([0.5, 1.5, 1.0])
    assert result.importance_capped.tolist() == [False, True, False]


@given(st.lists(st.tuples(*[st.floats(-9, 0)] * 4), min_size=1, max_size=20))
def test_without_a_cap_the_rollout_log_probs_change_no_bit(rows):
    logp, old, advantage, rollout = torch.tensor(rows).T
    with_them = policy_loss(logp, old, advantage, old * 0.1, PolicyLossConfig(), rollout)
    without = policy_loss(logp, old, advantage, old * 0.1, PolicyLossConfig())
    assert all(torch.equal(a, b) for a, b in zip(with_them[:4], without[:4], strict=True))
    assert with_them[4:] == without[4:] == (None, None)


def test_log_ratio_is_clamped_only_when_switched_on():
    assert one_token(math.exp(15), 1.0, clip_high=1e9)[0] == pytest.approx(-math.exp(15))
    assert one_token(math.exp(15), 1.0, clip_high=1e9, log_ratio_limit=10.0)[0] == pytest.approx(
        -math.exp(10)
    )


@pytest.mark.parametrize("distance", [-1e30, -1000.0, -89.0, 0.0, 89.0, 1000.0, 1e30])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
def test_loss_and_gradient_are_finite_at_any_distance(distance, advantage):
    """In float32 e^89 is infinite, and 0 × ∞ no number."""
    logp = torch.tensor([distance], requires_grad=True)
    zero = torch.zeros(1)
    kl = kl_estimate(logp, zero, "k3")
    result = policy_loss(
        logp, zero, zero + advantage, kl, PolicyLossConfig(importance_cap=2.0), logp.detach()
    )
    result.loss.sum().backward()
    assert all(part.isfinite().all() for part in (result.loss, result.ratio, result.importance, logp.grad))
    plain = policy_loss(logp.detach(), zero, zero + advantage, zero, PolicyLossConfig())
    expected = {-2.0: min(max(2 * math.exp(min(distance, 50)), 1.6), 6), 0.0: 0.0}
    expected[2.0] = -2 * math.exp(min(distance, math.log(1.28)))
    assert plain.loss.item() == pytest.approx(expected[advantage], abs=1e-6)


def test_a_limited_kl_counts_so_much_and_pulls_no_further():
    def one(distance, **settings):
        logp = torch.tensor([distance], requires_grad=True)
        zero = torch.zeros(1)
        kl = kl_estimate(logp, zero, "k3")
        result = policy_loss(logp, zero, zero, kl, PolicyLossConfig(kl_weight=1.0, **settings))
        result.loss.sum().backward()
        return result.loss.item(), logp.grad.item()

    k3 = math.exp(4) - 4 - 1
    assert one(-4.0) == pytest.approx((k3, 1 - math.exp(4)))
    assert one(-4.0, kl_limit=10.0) == pytest.approx((10.0, 0.0))
    assert one(-1.0, kl_limit=10.0) == pytest.approx((math.e - 2, 1 - math.e))


@pytest.mark.parametrize("settings", [{"kl": "k4"}, {"dual_clip": 0.5}, {"importance_cap": 0.0}])
def test_bad_settings_name_their_key(settings):
    with pytest.raises(UserError, match=f"model.update.loss.{next(iter(settings))}"):
        PolicyLossConfig(**settings)


def test_advantages_by_hand():
    assert group_advantages([1.0, 2.0, 3.0]) == pytest.approx([-1, 0, 1], abs=1e-5)


@given(st.lists(st.floats(0, 4), min_size=2, max_size=9), st.floats(-3, 3))
def test_advantages_are_centred_and_ignore_a_shift(rewards, shift):
    advantages = group_advantages(rewards)
    assert sum(advantages) == pytest.approx(0, abs=1e-6)
    spread = torch.tensor(rewards, dtype=torch.float64).std().item()
    if spread > 1e-3:
        assert group_advantages([r + shift for r in rewards]) == pytest.approx(advantages, abs=1e-6)
        assert torch.tensor(advantages).std().item() == pytest.approx(spread / (spread + 1e-6), rel=1e-5)


def test_equal_rewards_have_no_advantage():
    assert group_advantages([0.1 + 0.2] * 5) == [0.0] * 5
