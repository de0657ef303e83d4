"""iVGR: train vision-language models to reason in plain text with the localization skill
of explicit boxes (arXiv 2605.31096)."""

from ivgr.core.face import lazy_face

__version__ = "0.1.0"

NAMES = {
    "ColdStart": "data.sft_datamodule",
    "IVGR": "trainer.rl_module",
    "LLMJudge": "judge.llm",
    "LocalJudge": "judge.local",
    "Pretrained": "models.pretrained",
    "Rewards": "rewards.rewards",
    "SFT": "trainer.sft_module",
    "ShardDataModule": "data.datamodule",
    "TransformersEngine": "rollout.transformers_engine",
    "VLLMEngine": "rollout.vllm_engine",
}
__all__ = list(NAMES)
__getattr__ = lazy_face(__name__, NAMES)
