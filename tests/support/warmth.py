"""What the server of `warm` imports for all that it forks."""

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import ivgr.cli.main
import ivgr.trainer.rl_module
import ivgr.trainer.sft_module  # noqa: F401

get_checkpoint_conversion_mapping("qwen2_vl")
