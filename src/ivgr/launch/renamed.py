"""What configs and runs of earlier versions call otherwise.

In: a name as it stands there. Out: the name now.
"""

import re

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
_CLASS = re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, CLASSES))})(?!\w)")


def renamed_class(text: str) -> tuple[str, str] | None:
    """The first class in `text` that has another path now, and that path."""
    found = _CLASS.search(text)
    return (found.group(), CLASSES[found.group()]) if found else None
