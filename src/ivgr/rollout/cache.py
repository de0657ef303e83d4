"""A KV cache for decoding that grows in steps of `ROOM` tokens instead of copying itself
at every token."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM = 64


class RoomyLayer(DynamicLayer):
    """keys and values are views (rows, heads, length, head size) of larger buffers."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = None
        length = self.get_seq_length()
        end = length + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self._buffers = [
                _with_room(old, new, end + ROOM)
                for old, new in ((self.keys, key_states), (self.values, value_states))
            ]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, length:end] = new
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None


def _with_room(old: torch.Tensor, new: torch.Tensor, capacity: int) -> torch.Tensor:
    """A buffer shaped like `new` but `capacity` long, holding `old` at its beginning."""
    buffer = new.new_empty(*new.shape[:2], capacity, new.shape[-1])
    if old.numel():
        buffer[:, :, : old.shape[-2]] = old
    return buffer


def decoding_cache(config: PreTrainedConfig) -> DynamicCache:
    """An empty cache for the language model of `config`."""
    cache = DynamicCache()
    cache.layers = [RoomyLayer() for _ in range(config.get_text_config().num_hidden_layers)]
    return cache
