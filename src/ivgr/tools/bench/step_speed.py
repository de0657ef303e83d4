"""`ivgr bench step`: a whole iteration on the tiny world, against TRL's on the same model,
prompts, group sizes and response length, turn about in one process."""

from dataclasses import replace
from tempfile import TemporaryDirectory

from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL, Prompts
from ivgr.core.query import Query
from ivgr.core.sample import Sample
from ivgr.core.settings import dtype_of
from ivgr.data.encode import QueryEncoder
from ivgr.models.pretrained import Pretrained
from ivgr.packing.prefix_tree import tree_length
from ivgr.tools.bench.bench_setting import Setting, build_model, merged_grid
from ivgr.tools.bench.measure import Clock, Measurement
from ivgr.tools.bench.phases import build_iteration, count_tokens
from ivgr.tools.bench.trl_baseline import train_trl
from ivgr.toy.world import World, draw_samples, encode_jpeg

PATCH = 28  # pixels to an image token


def step_figures(setting: Setting, repeats: int) -> dict[str, Measurement]:
    """An iteration of `setting.queries` paired queries each way."""
    processor = _processor(setting)
    # The peer needs prompts of one length, so both streams get the same instruction.
    prompts = Prompts(textual=Prompts().grounded)
    samples = _samples(processor, prompts, setting)
    iteration = build_iteration(setting)
    policy = iteration.policy
    encoder = QueryEncoder(processor, policy.config.model_type, prompts)
    if setting.micro_batch:
        responses = 2 * setting.group_size * setting.response
        iteration.update.micro_batcher.token_budget = setting.micro_batch * (
            tree_length(encoder(samples[0])) + responses
        )
    tokens = {}

    def ours() -> None:
        with clocks["tree"].running():
            queries = [encoder(sample) for sample in samples]
            iteration.run(queries, seed=0)
        clocks["tree"].rollouts.append(iteration.seconds["rollout"])
        tokens.update(tree=count_tokens(queries, "tree"), trl=count_tokens(queries, "rows"))

    chats = [
        (sample.open_images()[0], f"{sample.question}\n{prompts.instruction(stream)}")
        for sample in samples
        for stream in (GROUNDED, TEXTUAL)
    ]
    with TemporaryDirectory() as folder:
        stock = _stock(setting, folder)
        clocks = {"tree": Clock(policy), "trl": Clock(stock)}
        train_trl(stock.to(policy.device), processor, chats, setting, clocks["trl"], ours, repeats + 1)  # pyright: ignore[reportArgumentType]
    return {name: clock.measurement(tokens[name]) for name, clock in clocks.items()}


def _stock(setting: Setting, folder: str) -> PreTrainedModel:
    """Returns the same weights as a user of transformers loads them from `folder`."""
    build_model(replace(setting, adapter=0, checkpointing=False)).save_pretrained(folder)
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype_of(setting.dtype))


def _processor(setting: Setting) -> ProcessorMixin:
    processor = Pretrained("tiny").load()[1]
    processor.image_processor.size["longest_edge"] = setting.image_tokens * PATCH**2
    return processor


def _samples(processor: ProcessorMixin, prompts: Prompts, setting: Setting) -> list[Sample]:
    """Paired samples whose images are of `setting.image_tokens` and whose prompts are all of
    one length."""
    encoder = QueryEncoder(processor, "qwen2_vl", prompts)
    height, width = (patches * PATCH for patches in merged_grid(setting.image_tokens))
    found: dict[int, list[Sample]] = {}
    for sample in draw_samples(World("train", 40 * setting.queries)):
        if sample.kind != "paired":
            continue
        image = sample.open_images()[0]
        x, y = width / image.width, height / image.height
        boxes = tuple((x1 * x, y1 * y, x2 * x, y2 * y) for x1, y1, x2, y2 in sample.boxes)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        sample = replace(sample, images=(encode_jpeg(image),), boxes=boxes)
        alike = found.setdefault(_prompt_length(encoder(sample)), [])
        alike.append(sample)
        if len(alike) == setting.queries:
            return alike
    raise UserError(
        f"bench step: no {setting.queries} prompts of one length; ask for fewer --setting.queries"
    )


def _prompt_length(query: Query) -> int:
    return len(query.prefix) + len(query.groups[0].instruction)
