"""What the server of `warm` imports for all that it forks."""

from transformers import Qwen2VLForConditionalGeneration, Qwen2VLProcessor  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import ivgr.cli  # noqa: F401
import ivgr.module  # noqa: F401
import ivgr.sft  # noqa: F401

get_checkpoint_conversion_mapping("qwen2_vl")
