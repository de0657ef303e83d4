"""The vision tower's attention by windows against transformers' own, one window at a time."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from ivgr.models import vision_attention
from ivgr.models.attention import set_attention
from ivgr.models.patch_embed import use_linear_patches
from ivgr.models.registry import find_family
from ivgr.models.trainable import checkpoint_layers
from support.families import FAMILIES, patch_features, tiny_family

SIZES = {
    "mixed": [[1, 6, 10], [1, 2, 4], [1, 6, 10], [1, 10, 14], [1, 4, 4]],
    "one": [[1, 8, 8]],
    "frames": [[2, 6, 6], [1, 6, 6]],
}


def towers(family):
    """A tower as it is set up here, and the same as transformers ships it."""
    ours = tiny_family(family)
    stock = tiny_family(family).model.visual
    stock._forward_pre_hooks.clear()
    stock.config._attn_implementation = "sdpa"
    return ours.model.visual, stock


def run(tower, pixels, grid):
    """Features and gradients of a pass, the pixels' among them."""
    tower.zero_grad()
    pixels = pixels.clone().requires_grad_()
    output = tower(pixels, grid_thw=grid)
    parts = [output.pooler_output, *getattr(output, "deepstack_features", ())]
    weight = torch.linspace(-1, 1, parts[0].numel()).view_as(parts[0])
    sum((part * weight).sum() for part in parts).backward()
    gradients = {name: weight.grad for name, weight in tower.named_parameters()}
    return parts, gradients | {"pixels": pixels.grad}


def draw(family, grid):
    count, generator = int(grid.prod(-1).sum()), torch.Generator().manual_seed(0)
    return torch.randn(count, patch_features(family), generator=generator)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_features_and_gradients_are_those_of_the_stock_tower(family, sizes, checkpointing):
    grid = torch.tensor(SIZES[sizes])
    ours, stock = towers(family)
    if checkpointing:
        checkpoint_layers(ours)
    pixels = draw(family, grid)
    parts, gradients = run(ours, pixels, grid)
    expected, expected_gradients = run(stock, pixels, grid)
    for part, other in zip(parts, expected, strict=True):
        torch.testing.assert_close(part, other, atol=1e-6, rtol=1e-6)
    for name, gradient in expected_gradients.items():
        difference = (gradients[name] - gradient).norm()
        assert difference <= 1e-6 * max(gradient.norm(), 1), name


@pytest.mark.parametrize("family", FAMILIES)
def test_as_many_calls_as_different_lengths(family, monkeypatch):
    grid = torch.tensor(SIZES["mixed"])
    ours, _ = towers(family)
    calls = []

    def count(query, *others, **options):
        calls.append(tuple(query.shape))
        return functional.scaled_dot_product_attention(query, *others, **options)

    monkeypatch.setattr(vision_attention, "scaled_dot_product_attention", count)
    ours(draw(family, grid), grid_thw=grid)
    # Four image sizes; of windows of two by two merged patches there are whole ones, halves and a quarter.
    assert len(calls) == {"qwen2_vl": 8, "qwen2_5_vl": 4 + 2 * 3, "qwen3_vl": 12}[family]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pass_reads_nothing_from_the_device(family):
    """On the meta device, where nothing can be read, a pass goes through with sizes on the host."""
    grid = torch.tensor(SIZES["mixed"])
    tower = copy.deepcopy(towers(family)[0]).to("meta")
    pixels = torch.empty(int(grid.prod(-1).sum()), patch_features(family), device="meta")
    with torch.no_grad():
        features = tower(pixels, grid_thw=grid).pooler_output
    assert features.shape[0] == len(pixels) // 4


def test_another_attention_of_the_tower_stays():
    model = tiny_family("qwen2_5_vl")
    tower = find_family("qwen2_5_vl").vision_tower(model)
    tower.config._attn_implementation = "eager"
    tower._forward_pre_hooks.clear()
    set_attention(model)
    assert tower.config._attn_implementation == "eager"
    grid = torch.tensor(SIZES["mixed"])
    stock = towers("qwen2_5_vl")[1]
    pixels = draw("qwen2_5_vl", grid)
    features, expected = (each(pixels, grid_thw=grid).pooler_output for each in (tower, stock))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_a_model_is_set_up_once():
    model = tiny_family("qwen2_vl")
    set_attention(copy.deepcopy(model))
    set_attention(model)
    assert len(model.model.visual._forward_pre_hooks) == 1


def test_another_model_can_be_built_from_its_configuration():
    model = tiny_family("qwen2_5_vl")
    again = AutoModelForImageTextToText.from_config(model.config)
    assert again.model.visual.config._attn_implementation == "sdpa"
    assert again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_in_the_towers_dtype_give_the_same_bits(family, dtype, linear):
    model, grid = tiny_family(family).to(dtype), torch.tensor(SIZES["mixed"])
    if linear:
        use_linear_patches(model)
    pixels = draw(family, grid)
    with torch.no_grad():
        ours, expected = (
            model.model.get_image_features(given, grid, return_dict=True).pooler_output
            for given in (pixels.to(dtype), pixels)
        )
    assert all(map(torch.equal, ours, expected))
