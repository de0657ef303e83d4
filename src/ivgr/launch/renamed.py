"""Old names of settings and classes. In: a name from a config or a run of an earlier version. Out: today's
name."""

import re
from typing import Any

CLASSES = {
    "ivgr.archive.Archive": "ivgr.rewards.Archive",
    "ivgr.data.cold_start.ColdStart": "ivgr.ColdStart",
    "ivgr.data.curriculum.Curriculum": "ivgr.toy.Curriculum",
    "ivgr.data.datamodule.TinyWorld": "ivgr.toy.TinyWorld",
    "ivgr.distributed.strategy.FSDP2": "ivgr.trainer.FSDP2",
    "ivgr.judge.RuleJudge": "ivgr.toy.RuleJudge",
    "ivgr.module.IVGR": "ivgr.IVGR",
    "ivgr.policy.load.Pretrained": "ivgr.Pretrained",
    "ivgr.policy.reference.FrozenReference": "ivgr.trainer.FrozenReference",
    "ivgr.policy.scratch.TinyScratch": "ivgr.toy.TinyScratch",
    "ivgr.rewards.total.Rewards": "ivgr.Rewards",
    "ivgr.rollout.engine.TransformersEngine": "ivgr.TransformersEngine",
    "ivgr.rollout.vllm.VLLMEngine": "ivgr.VLLMEngine",
    "ivgr.sft.SFT": "ivgr.SFT",
    "ivgr.watch.benchmarks.Benchmarks": "ivgr.tools.Benchmarks",
    "ivgr.watch.probing.Probing": "ivgr.tools.Probing",
}
# Also of all that lies below them.
SETTINGS = {
    "model.adapter": "model.trainable.adapter",
    "model.archive": "model.rewards.archive",
    "model.clip_norm": "model.update.clip_norm",
    "model.drop_flat": "model.update.drop_zero_std",
    "model.engine.group_size": "model.engine.sampling.group_size",
    "model.engine.max_new_tokens": "model.engine.sampling.max_new_tokens",
    "model.engine.temperature": "model.engine.sampling.temperature",
    "model.engine.top_p": "model.engine.sampling.top_p",
    "model.epochs": "model.update.epochs",
    "model.freeze": "model.trainable.freeze",
    "model.gradient_checkpointing": "model.trainable.gradient_checkpointing",
    "model.layout": "model.update.layout",
    "model.loss": "model.update.loss",
    "model.max_prompt_tokens": "model.encoding.max_prompt_tokens",
    "model.optimizer": "model.update.optimizer",
    "model.prompts": "model.encoding.prompts",
    "model.record_every": "record_every",
    "model.resample": "model.update.resample",
    "model.schedule": "model.update.schedule",
    "model.token_budget": "model.update.token_budget",
    "model.updates": "model.update.mini_batches",
}
_CLASS = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, CLASSES))})(?!\w)")


def renamed_class(text: str) -> tuple[str, str] | None:
    """The first class in `text` that has another path now, and that path."""
    found = _CLASS.search(text)
    return (found.group(), CLASSES[found.group()]) if found else None


def renamed_setting(name: str) -> str | None:
    """Returns today's name of a dotted setting, as the user writes it; None if it was not renamed."""
    name = name.replace(".init_args", "")
    for old, new in SETTINGS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return None


def by_new_names(saved: dict[str, Any]) -> dict[str, Any]:
    """Flat settings, such as an earlier version has saved, with today's names of settings and classes;
    `init_args` is left out of the names. A name may begin with a prefix and ": "."""
    renamed = {}
    for name, value in saved.items():
        prefix, colon, own = name.rpartition(": ")
        new = renamed_setting(own) or own.replace(".init_args", "")
        renamed[prefix + colon + new] = CLASSES.get(value, value) if isinstance(value, str) else value
    return renamed
