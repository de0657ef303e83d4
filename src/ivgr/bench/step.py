"""`ivgr bench step`: a whole iteration on the tiny world, against TRL's on the same model,
prompts, group sizes and response length, turn about in one process."""

from dataclasses import replace

from PIL import Image
from transformers import AutoModelForImageTextToText, ProcessorMixin

from ivgr.bench.measure import Clock, Measurement
from ivgr.bench.peer import train_trl
from ivgr.bench.phases import build_iteration, count_tokens
from ivgr.bench.setting import Setting
from ivgr.data.encode import QueryEncoder
from ivgr.data.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.data.sample import Sample
from ivgr.errors import UserError
from ivgr.policy.load import TINY, Pretrained
from ivgr.query import Query
from ivgr.world.write import World, draw_samples, encode_jpeg

LONG = (896, 448)  # 32 x 16 merged patches of 28 pixels: 512 image tokens
SHORT = (140, 140)  # 5 x 5


def step_figures(setting: Setting, long: bool, repeats: int) -> dict[str, Measurement]:
    """An iteration of `setting.queries` paired queries each way."""
    processor = _processor()
    # The peer needs prompts of one length, so both streams get the same instruction.
    prompts = Prompts(textual=Prompts().grounded)
    samples = _samples(processor, prompts, setting.queries, LONG if long else SHORT)
    iteration = build_iteration(setting)
    peer_policy = AutoModelForImageTextToText.from_pretrained(TINY, dtype=setting.dtype)
    iteration.policy.generation_config.eos_token_id = []
    encoder = QueryEncoder(processor, iteration.policy.config.model_type, prompts)
    clocks = {"tree": Clock(iteration.policy), "trl": Clock(peer_policy)}
    tokens = {}

    def ours() -> None:
        with clocks["tree"].running():
            queries = [encoder(sample) for sample in samples]
            iteration.run(queries, seed=0)
        tokens.update(tree=count_tokens(queries, "tree"), trl=count_tokens(queries, "rows"))

    chats = [
        (sample.open_images()[0], f"{sample.question}\n{prompts.instruction(stream)}")
        for sample in samples
        for stream in (GROUNDED, TEXTUAL)
    ]
    train_trl(peer_policy, processor, chats, setting, clocks["trl"], ours, repeats + 1)
    return {name: clock.measurement(tokens[name]) for name, clock in clocks.items()}


def _processor() -> ProcessorMixin:
    processor = Pretrained("tiny").load()[1]
    processor.image_processor.size["longest_edge"] = LONG[0] * LONG[1]
    return processor


def _samples(processor, prompts: Prompts, count: int, size: tuple[int, int]) -> list[Sample]:
    """Paired samples whose images are `size` and whose prompts are all of one length."""
    encoder = QueryEncoder(processor, "qwen2_vl", prompts)
    found: dict[int, list[Sample]] = {}
    for sample in draw_samples(World("train", 40 * count)):
        if sample.kind != "paired":
            continue
        image = sample.open_images()[0].resize(size, Image.Resampling.BICUBIC)
        sample = replace(sample, images=(encode_jpeg(image),))
        alike = found.setdefault(_prompt_length(encoder(sample)), [])
        alike.append(sample)
        if len(alike) == count:
            return alike
    raise UserError(f"bench step: no {count} prompts of one length; ask for fewer --setting.queries")


def _prompt_length(query: Query) -> int:
    return len(query.prefix) + len(query.groups[0].instruction)
