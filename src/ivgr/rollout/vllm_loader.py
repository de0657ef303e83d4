"""The initialisation of a vLLM model that gets its weights later: noise for weights, buffers as computed."""

from typing import Any

import torch
from torch import nn


def keep_buffers() -> None:
    """Makes vLLM's load format "dummy" leave buffers as the model's constructor made them. It fills
    the persistent ones with noise, as if a checkpoint held them; vLLM 0.31 and 0.32 have the
    normalisation of images in such."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

    @register_model_loader("dummy")
    class WeightsOnly(DummyModelLoader):
        @torch.no_grad()
        def load_weights(self, model: nn.Module, model_config: Any) -> None:
            buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
            super().load_weights(model, model_config)
            for buffer, made in buffers:
                buffer.copy_(made)
