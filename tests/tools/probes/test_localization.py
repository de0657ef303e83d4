"""Read-outs where the truth is known: features that hold the box or noise, hidden states that hold
the box, pictures of one object; and where a response names its objects."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ivgr.core.errors import UserError
from ivgr.tools.probes.encoders import Encoder, encode_named
from ivgr.tools.probes.linear_probe import PENALTIES, _path, ridge, split_by_image
from ivgr.tools.probes.localization import Named, list_named, probe_localization, read_out
from ivgr.tools.probes.probe_interval import mean_interval, ratio_intervals
from support.probing import KnownTower, random_policy, says, with_tokens, world_samples

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def fresh_numbers():
    """Every test draws the same, whichever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def random_objects(images=60, each=2):
    centre, side = RNG.uniform(0.2, 0.8, (images * each, 2)), RNG.uniform(0.1, 0.3, (images * each, 2))
    boxes = np.concatenate([centre, side], 1)
    return Named(boxes, np.repeat(np.arange(images), each), ("thing",) * len(boxes))


def test_features_that_hold_the_box_give_it_exactly():
    named = random_objects()
    mixed = named.boxes @ RNG.normal(size=(4, 20)) + RNG.normal(size=20)
    found = read_out(mixed, named)
    assert found.centre.mean > 0.999 and found.size.mean > 0.999 and found.iou.mean > 0.97
    assert found.centre.low > 0.999 and found.centre.count == 60 and found.objects == 120
    assert found.place.low > 0.6 > found.place_chance.high + 0.2  # a box on a border is hard to place
    assert found.control.mean < 0.05 and found.control.high < 0.15 and found.control.count == 20


def test_noise_of_known_size_gives_its_share_of_variance():
    """With as much noise as signal in every feature, no read-out of one feature a target can do
    better than R² = 1/2."""
    named = random_objects(600, 1)
    scale = named.boxes.std(0)
    found = read_out(named.boxes + RNG.normal(size=named.boxes.shape) * scale, named, shuffles=2)
    assert found.centre.mean == pytest.approx(0.5, abs=0.06)
    assert found.centre.low < 0.5 < found.centre.high


def test_noise_gives_nothing():
    named = random_objects()
    found = read_out(RNG.normal(size=(120, 50)), named)
    assert abs(found.centre.mean) < 0.1 and found.centre.low < 0 and found.iou.mean < 0.4
    assert found.place.mean < found.place_chance.high + 0.1


def test_what_tells_only_the_image_is_of_no_use():
    """Objects of one image have one box, features are the image's own: by rows it would be exact."""
    boxes = np.repeat(RNG.uniform(0.2, 0.8, (40, 4)), 3, 0)
    named = Named(boxes, np.repeat(np.arange(40), 3), ("thing",) * 120)
    assert read_out(np.repeat(np.eye(40), 3, 0), named).centre.mean < 0.05


def test_ridge_is_the_normal_equations_solution():
    x, y, new = RNG.normal(size=(30, 7)), RNG.normal(size=(30, 2)), RNG.normal(size=(4, 7))
    mean, scale = x.mean(0), x.std(0)
    a, b = (x - mean) / scale, (new - mean) / scale
    for penalty, found in zip(PENALTIES, _path(x, y, new), strict=True):
        weights = np.linalg.solve(a.T @ a + 30 * penalty * np.eye(7), a.T @ (y - y.mean(0)))
        np.testing.assert_allclose(found, b @ weights + y.mean(0), atol=1e-9)


def test_folds_part_images_and_cover_every_row():
    images = RNG.integers(0, 12, 50)
    tested = np.zeros(50, int)
    for train, test in split_by_image(images, 5, 0):
        assert not set(images[train]) & set(images[test]) and (train ^ test).all()
        tested += test
    assert (tested == 1).all()


def test_a_target_without_features_is_told_by_the_training_mean():
    named = random_objects(20, 1)
    predicted, means = ridge(np.zeros((20, 3)), named.boxes, named.images, 5, 0)
    np.testing.assert_allclose(predicted, means)


def test_an_interval_counts_images_not_rows():
    """Ten equal rows an image are as sure as one."""
    values = RNG.normal(size=50)
    one = mean_interval(values, np.arange(50))
    ten = mean_interval(np.repeat(values, 10), np.repeat(np.arange(50), 10))
    assert (one.mean, one.low, one.high, one.count) == pytest.approx((ten.mean, ten.low, ten.high, 50))
    half = 1.96 * values.std() / 50**0.5
    assert (one.low, one.high) == pytest.approx((one.mean - half, one.mean + half), abs=0.03)


def test_what_is_not_known_counts_nowhere():
    values = np.array([1.0, np.nan, 3.0])
    assert mean_interval(values, np.arange(3)).mean == 2.0
    assert mean_interval(values, np.arange(3)).count == 2
    (ratio,) = ratio_intervals(np.array([[1.0], [5.0]]), np.array([[2.0], [8.0]]), np.arange(2))
    assert ratio.mean == 0.6


@pytest.fixture(scope="module")
def policy():
    return random_policy("qwen2_vl")


SENTENCES = {
    "The red square is in the upper left.": (" square", " the", 1),
    "the Red Square is blue. It is left.": (" Square", None, 1),
    "The red square is at <box>[1,2,3,4]</box>.": (" square", "<box>[", 1),
    "There is no square that is red.": (None, None, 0),
    "red squared is left. The red square is right.": (" square", " is", 1),
}


@pytest.mark.parametrize("think", SENTENCES)
def test_where_the_reasoning_names_an_object_and_its_place(policy, think):
    sample = replace(world_samples(1)[0], labels=("red square",), boxes=((0, 0, 30, 30),))
    reading = says(policy[1], sample, f"<think>{think}</think><answer>left</answer>")
    tokens = reading.query.groups[0].rollouts[0].tokens
    decode = policy[1].processor.tokenizer.decode
    assert decode(tokens[list(reading.think)]) == think
    noun, place, count = SENTENCES[think]
    assert len(reading.mentions) == count
    for mention in reading.mentions:
        assert decode(tokens[: mention.noun + 1]).endswith("quare")
        assert decode(tokens[mention.noun]) in (noun, "e")  # a word outside the vocabulary is bytes
        assert (mention.place is None) == (place is None)
        if place is not None:
            assert decode(tokens[mention.place]).strip() == place.strip()


def test_only_the_reasoning_names_objects(policy):
    sample = replace(world_samples(1)[0], labels=("red square",), boxes=((0, 0, 30, 30),))
    for text in ("The red square is left.", "<think>no</think><answer>red square</answer>"):
        assert says(policy[1], sample, text).mentions == ()


class RankAssignment(nn.Module):
    """A decoder layer that adds the image's mean token to every token."""

    def __init__(self, first: int, count: int) -> None:
        super().__init__()
        self.columns = slice(first, first + count)

    def forward(self, hidden_states, **_):
        return hidden_states + hidden_states[:, self.columns].mean(1, keepdim=True)


def spreading_policy():
    """Every token's state holds the picture's first token; pictures have one token apiece."""
    model, encoder = random_policy("qwen2_vl")
    model.model.visual = KnownTower(model.config.text_config.hidden_size)
    return model, encoder


@pytest.mark.parametrize("point", ["noun", "place"])
def test_hidden_states_that_hold_the_box_are_read_and_noise_is_not(point):
    model, encoder = spreading_policy()
    width = model.config.text_config.hidden_size
    samples = world_samples(40, lesson="describe", fewest=1, most=1)
    readings = [says(encoder, sample) for sample in samples]
    first = int((readings[0].query.prefix == model.config.image_token_id).nonzero()[0])
    model.model.language_model.layers = nn.ModuleList([RankAssignment(first, 4)])
    named = list_named(readings, point)
    generator = torch.Generator().manual_seed(0)
    written = torch.randn(4, width, generator=generator)
    for holds in (True, False):
        shown = []
        for reading, box in zip(readings, named.boxes, strict=True):
            count = len((reading.query.prefix == model.config.image_token_id).nonzero())
            noise = torch.randn(width, generator=generator)
            token = torch.from_numpy(box).float() @ written if holds else noise
            shown.append(with_tokens(reading, token.expand(count, -1)))
        found = probe_localization(model, shown, point)[0]
        assert (found.centre.mean > 0.95) if holds else (found.centre.mean < 0.1), found.centre
        assert found.control.mean < 0.1


def test_too_few_images_are_refused(policy):
    readings = [says(policy[1], sample) for sample in world_samples(9)]
    with pytest.raises(UserError, match="9 images .* needs 10"):
        probe_localization(policy[0], readings)


def test_a_frozen_encoder_tells_where_a_lone_object_is(policy):
    samples = world_samples(150, lesson="describe", fewest=1, most=1)
    readings = [says(policy[1], sample) for sample in samples]
    named = list_named(readings, "noun")
    state = torch.random.get_rng_state()
    features = encode_named(Encoder("test_vit", pretrained=False), readings, named)
    assert torch.equal(torch.random.get_rng_state(), state)
    found = read_out(features, named)
    assert found.centre.low > 0.3 and found.control.high < 0.1
    again = encode_named(Encoder("test_vit", pretrained=False), readings, named)
    assert np.array_equal(features, again)


@pytest.mark.parametrize("name", ["test_resnet", "swin_tiny_patch4_window7_224"])
def test_maps_of_any_layout_are_taken(policy, name):
    readings = [says(policy[1], sample) for sample in world_samples(3)]
    named = list_named(readings, "noun")
    features = encode_named(Encoder(name, pretrained=False), readings, named)
    words = len({word for label in named.labels for word in label.split()})
    assert features.shape == (len(named), words + 3 * (1 + words)) and np.isfinite(features).all()


def test_an_unknown_encoder_is_refused():
    with pytest.raises(UserError, match="timm has no model 'resnet_of_mine'"):
        Encoder("resnet_of_mine").load()
