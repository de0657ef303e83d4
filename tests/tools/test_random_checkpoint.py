"""`ivgr scratch` and the families' shipped sizes: against the published parameter counts, stock
transformers, and a training run of each family."""

import gzip
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from ivgr.cli.main import main
from ivgr.core.errors import UserError
from ivgr.core.prompts import Prompts
from ivgr.core.query import rollouts_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.forward import prompt_positions
from ivgr.models.pretrained import Pretrained
from ivgr.models.registry import find_family, find_shipped
from ivgr.models.skeleton import build_skeleton
from ivgr.rewards.rewards import Rewards
from ivgr.tools.random_checkpoint import configure, draw_model
from ivgr.toy.tokenizer import build_tokenizer
from support.command_line import TINY, fails
from support.families import FAMILIES
from support.samples import jpeg, make_sample

# Parameters, from the index of each hub checkpoint's safetensors.
PUBLISHED = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2-VL-72B-Instruct": 73_405_560_320,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen2.5-VL-32B-Instruct": 33_452_718_336,
    "Qwen/Qwen2.5-VL-72B-Instruct": 73_410_777_344,
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
}
# Qwen3-32B, the language model of Qwen3-VL-32B.
QWEN3_32B = 32_762_123_264


class EvenTokens(Rewards):
    """Rewards that differ from the first iteration on: the share of even tokens."""

    def score(self, queries, judge, archive):
        for rollout in rollouts_of(queries):
            rollout.reward = (rollout.tokens % 2 == 0).float().mean().item()
            rollout.terms = {"format": rollout.reward, "accuracy": 0.0, "box": 0.0, "consistency": 0.0}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    main(["scratch", request.param, "tiny", str(folder), "--dtype", "float32"])
    return request.param, folder


@pytest.mark.parametrize("hub_id", PUBLISHED)
def test_shipped_sizes_have_the_published_number_of_parameters(hub_id):
    family, size = find_shipped(hub_id)
    model = build_skeleton(family.config(size))
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED[hub_id]
    assert {weight.device.type for weight in model.parameters()} == {"meta"}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_checkpoint_holds_is_what_transformers_computes(family):
    config = configure(find_family(family), "tiny", None, build_tokenizer())
    junk = [torch.full((size,), torch.nan) for size in range(1, 600)]  # what memory may hold
    del junk
    drawn = dict(draw_model(config, torch.float32, 0).named_buffers())
    made = dict(AutoModelForImageTextToText.from_config(config).named_buffers())
    assert drawn.keys() == made.keys() and len(drawn) >= 4
    assert all(torch.equal(drawn[name], made[name]) for name in made)


def test_the_language_model_of_qwen3_vl_32b_is_qwen3_32b():
    model = build_skeleton(find_family("qwen3_vl").config("32b"))
    language = [*find_family("qwen3_vl").language_model(model).parameters(), *model.lm_head.parameters()]
    assert sum(weight.numel() for weight in language) == QWEN3_32B


def test_stock_transformers_finds_every_weight(checkpoint):
    family, folder = checkpoint
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert model.config.model_type == family
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    head = model.get_output_embeddings().weight
    assert head.std().item() == pytest.approx(head.shape[1] ** -0.5, rel=0.02)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_the_same_seed_gives_the_same_weights(checkpoint, tmp_path):
    family, folder = checkpoint
    for seed in "01":
        args = ["scratch", family, "tiny", str(tmp_path / seed), "--dtype", "float32", "--seed", seed]
        main(args)
    first, again, other = (
        load_file(path / "model.safetensors") for path in (folder, tmp_path / "0", tmp_path / "1")
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].dim() > 1)


def test_layers_and_dtype_are_as_asked(checkpoint, tmp_path):
    family, _ = checkpoint
    main(["scratch", family, "tiny", str(tmp_path / "m"), "--layers", "1"])
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "m")
    assert model.dtype == torch.bfloat16 and len(find_family(family).decoder_layers(model)) == 1


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["llava", "7b"], "known are qwen2_vl, qwen2_5_vl, qwen3_vl"),
        (["qwen2_vl", "9b"], "known are 2b, 7b, 72b"),
        (["qwen2_vl", "tiny", "--dtype", "int8"], "bfloat16"),
        (["qwen2_vl", "tiny", "--layers", "0"], "--layers"),
    ],
)
def test_misuse_is_one_line(capsys, tmp_path, args, named):
    assert named in fails(capsys, "scratch", *args[:2], str(tmp_path / "m"), *args[2:])
    assert not (tmp_path / "m").exists()


def test_a_folder_in_use_is_left_alone(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert str(tmp_path) in fails(capsys, "scratch", "qwen2_vl", "tiny", str(tmp_path))


def test_every_family_trains(checkpoint, tmp_path):
    """Three iterations: what is sampled is what is scored, and every part learns."""
    family, folder = checkpoint
    main(
        ["fit", "--config", TINY, "--model.policy", str(folder), "--trainer.default_root_dir", str(tmp_path),
         "--model.iterations", "3", "--data.prompts", "6", "--data.train_count", "30",
         "--data.val_count", "10", "--data.val_queries", "2", "--model.engine.sampling.max_new_tokens", "5",
         "--checkpoint_every", "3", "--model.rewards", "test_random_checkpoint.EvenTokens"]
    )  # fmt: skip
    figures = EventAccumulator(str(tmp_path)).Reload()
    mismatch = [event.value for event in figures.Scalars("rollout/logp_mismatch")]
    assert len(mismatch) == 3 and max(mismatch) < 1e-4
    before = dict(Pretrained(str(folder)).load()[0].named_parameters())
    after = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[f"policy.{name}"])}
    shape = find_family(family)
    assert any(name.startswith(shape.vision) for name in moved)
    assert all(any(name.startswith(f"{shape.layers}.{i}.") for name in moved) for i in range(3))
    with gzip.open(tmp_path / "rollouts" / "000003.jsonl.gz") as lines:
        assert sum(1 for _ in map(json.loads, lines)) == 5 * 6


def test_prompts_of_several_images_are_those_of_the_hf_processor(checkpoint):
    """Ids, pixels and rotary positions, with images of three shapes; the frame is the first's."""
    family, folder = checkpoint
    model, processor = Pretrained(str(folder)).load()
    sizes = [(150, 100), (60, 130), (224, 224)]
    sample = make_sample(images=tuple(jpeg(size=size) for size in sizes), boxes=((15, 10, 75, 50),))
    query = QueryEncoder(processor, family, Prompts())(sample)
    messages = Prompts().messages(sample.question, 3, "grounded")
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    stock = processor(text=[text], images=sample.open_images(), return_tensors="pt")
    ids = torch.cat([query.prefix, query.groups[0].instruction])
    assert torch.equal(ids, stock["input_ids"][0])
    assert torch.equal(query.pixel_values, stock["pixel_values"])
    kinds = (stock["input_ids"] == model.config.image_token_id).int()
    positions, _ = model.model.get_rope_index(
        stock["input_ids"], mm_token_type_ids=kinds, image_grid_thw=stock["image_grid_thw"]
    )
    assert torch.equal(prompt_positions(model, ids, query.image_grid_thw), positions[:, 0])
    rows, columns = stock["image_grid_thw"][0, 1:].tolist()
    side = find_family(family).patch
    absolute = (columns * side, rows * side)
    whole = absolute if family == "qwen2_5_vl" else (1000, 1000)
    expected = tuple(share * length for share, length in zip((0.1, 0.1, 0.5, 0.5), whole * 2, strict=True))
    assert query.boxes[0] == pytest.approx(expected)


def test_images_are_kept_within_the_pixel_budget(checkpoint):
    family, folder = checkpoint
    factor = 2 * find_family(family).patch
    for fewest, most in ((3136, 40_000), (90_000, 3_211_264)):
        _, processor = Pretrained(str(folder), min_pixels=fewest, max_pixels=most).load()
        for size in ((16, 24), (200, 200), (2000, 1500)):
            image = Image.new("RGB", size)
            grid = processor.image_processor(images=[image], return_tensors="pt")["image_grid_thw"][0]
            pixels = math.prod(grid.tolist()) * find_family(family).patch ** 2
            assert fewest <= pixels <= most and pixels % factor**2 == 0


def test_without_a_budget_the_processor_keeps_its_own(checkpoint):
    sizes = [AutoProcessor.from_pretrained(checkpoint[1]), Pretrained(str(checkpoint[1])).load()[1]]
    assert sizes[0].image_processor.size == sizes[1].image_processor.size


@pytest.mark.parametrize("budget", [(0, 100), (5000, 4000), (1, 20)])
def test_an_impossible_budget_is_named(budget):
    with pytest.raises(UserError, match="_pixels"):
        Pretrained("tiny", min_pixels=budget[0], max_pixels=budget[1]).load()
