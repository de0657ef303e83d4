"""The light probes in one call, and the callback that runs them while a policy is trained."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.data.encode import QueryEncoder
from ivgr.data.shards import write_shards
from ivgr.models.pretrained import Pretrained
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.probes.annotated_response import respond
from ivgr.tools.probes.causal import probe_causal
from ivgr.tools.probes.localization import probe_localization
from ivgr.tools.probes.measures import measure, measure_readings
from ivgr.tools.probes.probe_callback import Probing
from support.launch import finish, rollouts, said, scalars, start, write_world
from support.probing import random_policy, says, world_samples

STREAM_NAMES = ("attention_inside", "readout_r2", "noun_readout_r2", "causal_drop", "causal_reasoning")


@pytest.fixture(scope="module")
def tiny():
    model, processor = Pretrained("tiny").load()
    return model.eval(), QueryEncoder(processor, "qwen2_vl", Prompts())


@pytest.fixture(scope="module")
def measures(tiny):
    engine = TransformersEngine(SamplingConfig(max_new_tokens=60))
    state = torch.random.get_rng_state()
    found = measure(*tiny, engine, world_samples(24), TEXTUAL)
    assert torch.equal(torch.random.get_rng_state(), state)
    return found


def test_every_figure_is_a_float_under_its_streams_name(measures):
    metrics = measures.metrics()
    assert {f"probe/textual/{name}" for name in STREAM_NAMES} <= metrics.keys()
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert measures.layer == 2


def test_measures_are_those_of_the_probes_one_by_one(tiny, measures):
    readings = respond(
        *tiny, TransformersEngine(SamplingConfig(max_new_tokens=60)), world_samples(24), TEXTUAL
    )
    tokenizer = tiny[1].processor.tokenizer
    assert measures.causal == probe_causal(tiny[0], tokenizer, readings)
    assert measures.place_readout == probe_localization(tiny[0], readings, "place", [2])[2]
    assert measures.noun_readout == probe_localization(tiny[0], readings, "noun", [2])[2]


def test_the_shipped_policy_looks_at_what_it_speaks_of(tiny):
    """Above chance and by no little, in the stream that writes boxes; and its reasoning hangs on what
    is inside them."""
    found = measure(*tiny, TransformersEngine(SamplingConfig(max_new_tokens=60)), world_samples(32), GROUNDED)
    assert found.think.inside.low > found.think.area.mean
    assert found.think.inside.low > found.think.chance.mean
    assert found.causal.reasoning.difference.low > 1.0
    assert found.place_readout.centre.low > 0.0


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_other_families_are_measured_alike(family):
    model, encoder = random_policy(family)
    readings = [says(encoder, sample) for sample in world_samples(12)]
    found = measure_readings(model, encoder, readings, TEXTUAL)
    assert found.think.inside.count == found.causal.direct.inside.count == 12
    assert found.place_readout.objects == sum(len(reading.mentions) for reading in readings)


def test_what_cannot_be_read_out_is_left_out(tiny):
    few = measure_readings(*tiny, [says(tiny[1], sample) for sample in world_samples(4)], TEXTUAL)
    assert few.place_readout is None and "probe/textual/readout_r2" not in few.metrics()
    assert "probe/textual/attention_inside" in few.metrics()


@pytest.mark.slow
def test_probing_changes_no_token_and_is_seen_in_tensorboard(tmp_path):
    settings = {"model.iterations": 2, "data.prompts": 4, **write_world(tmp_path)}
    callback = {"trainer.callbacks+": "ivgr.tools.probes.probe_callback.Probing"}
    callback |= {"trainer.callbacks.every": 2, "trainer.callbacks.count": 3}
    plain, probed = tmp_path / "plain", tmp_path / "probed"
    processes = start(1, plain, settings) + start(1, probed, settings | callback)
    assert finish(processes) == [0, 0], said(plain, 0) + said(probed, 0)
    assert len(rollouts(plain)) == 2
    assert rollouts(probed) == rollouts(plain)
    assert scalars(plain, "update/grad_norm") == scalars(probed, "update/grad_norm")
    for stream in (GROUNDED, TEXTUAL):
        events = EventAccumulator(str(probed / stream)).Reload()
        for name in ("attention_inside", "causal_direct"):
            assert [event.step for event in events.Scalars(f"probe/{name}")] == [0, 2]
        assert events.Tags()["images"].count("probe/attention/3") == 1
        first = events.Images("probe/attention/1")[0]
        assert (first.height, first.width) == (512, 512)
        tags = EventAccumulator(str(plain / stream)).Reload().Tags()["scalars"]
        assert tags and not any(tag.startswith("probe/") for tag in tags)


def test_samples_without_labels_are_refused_in_one_line(tiny, tmp_path):
    write_shards(tmp_path, "val", [replace(sample, labels=()) for sample in world_samples(3)], 10)
    trainer = SimpleNamespace(datamodule=SimpleNamespace(val=str(tmp_path), allow_pipe=False))
    with pytest.raises(UserError, match="none of the first 2 paired samples .* add labels"):
        Probing(count=2).on_train_start(trainer, SimpleNamespace(encoder=tiny[1], iteration=0))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"every": 0}, "every is 0"),
        ({"pictures": -1}, "pictures is -1"),
        ({"streams": ["single"]}, "must be some of grounded, textual"),
        ({"streams": []}, "must be some of"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(UserError, match=complaint):
        Probing(**settings)
