"""The peer of `ivgr bench step`: TRL's GRPOTrainer on the same model and prompts.

Its best documented setting for plain transformers: all prompts of an iteration generate as
one batch, micro-batches as large as ours in queries. It pads prompts on the left, which
Qwen2-VL's rotary positions do not survive, so all prompts are of one length.
"""

import warnings
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from typing import Any

from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel, PrinterCallback, ProcessorMixin, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from ivgr.core.response import format_reward
from ivgr.models.forward import banned_ids
from ivgr.models.lora import AdapterConfig
from ivgr.tools.bench.bench_setting import OPTIMIZERS, Setting
from ivgr.tools.bench.measure import Clock


class Alternate(TrainerCallback):
    """Measures the trainer's steps and calls `between` after each."""

    def __init__(self, clock: Clock, between: Callable[[], None]) -> None:
        self.clock = clock
        self.between = between
        self.step = ExitStack()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        self.step.enter_context(self.clock.running())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs) -> None:
        self.step.close()
        self.between()


class Peer(GRPOTrainer):
    """GRPOTrainer whose generation is timed apart."""

    clock: Clock

    def _generate_single_turn(self, *args, **kwargs) -> Any:
        with self.clock.rolling_out():
            return super()._generate_single_turn(*args, **kwargs)


def train_trl(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: list[tuple[Image.Image, str]],
    setting: Setting,
    clock: Clock,
    between: Callable[[], None],
    steps: int,
) -> None:
    """`steps` GRPO steps on all `prompts` (image, text), `setting.group_size` responses each
    of exactly `setting.response` tokens, measured by `clock`; `between` runs after each."""
    rows = [{"prompt": [{"role": "user", "content": text}], "image": image} for image, text in prompts]
    micro_batches = setting.queries // (setting.micro_batch or setting.queries)
    quiet = warnings.catch_warnings(action="ignore", category=FutureWarning)
    with quiet, TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(rows) * setting.group_size // micro_batches,
            gradient_accumulation_steps=micro_batches,
            num_generations=setting.group_size,
            max_completion_length=setting.response,
            generation_kwargs={"min_new_tokens": setting.response, "suppress_tokens": banned_ids(model)},
            top_p=0.99,
            beta=0.01,
            max_steps=steps,
            gradient_checkpointing=setting.checkpointing,
            optim=OPTIMIZERS[setting.optimizer][1],
            bf16=False,
            use_cpu=model.device.type == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Peer(
            model=model,
            reward_funcs=[_format],  # pyright: ignore[reportArgumentType]
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=processor,
            callbacks=[Alternate(clock, between)],
            peft_config=_adapter(setting),
        )
        trainer.clock = clock
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _adapter(setting: Setting) -> Any:
    """The adapters of `ivgr.models.lora`, as TRL takes them."""
    if not setting.adapter:
        return None
    from peft import LoraConfig

    ours = AdapterConfig(rank=setting.adapter)
    alpha: Any = ours.alpha  # declared int, any number does
    return LoraConfig(r=ours.rank, lora_alpha=alpha, target_modules=r".*language_model.*_proj")


def _format(completions: list, **kwargs) -> list[float]:
    return [format_reward(messages[0]["content"]) for messages in completions]
