"""A decoding pass of a Qwen language model by few kernels: the weights are the stock modules', read where
they lie; what stands between their products is fused.

In: the last tokens of R rows. Out: the logits of the next.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ivgr.kernels.decoding import add_norm, gate_product, rotate
from ivgr.models.lora import join_adapted
from ivgr.models.registry import find_family
from ivgr.rollout.prefix_kv_cache import TreeCache

LAYER = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "head_dim", "scaling")
MLP = ("gate_proj", "up_proj", "down_proj")


def fits_fused_step(model: PreTrainedModel) -> bool:
    """Whether the decoder layers of `model` are made as this pass takes them: RMS norms, SiLU, full attention
    with rotary positions. Another family decodes by its own modules."""
    family = find_family(model.config.model_type)
    language: Any = family.language_model(model)
    layers = list(family.decoder_layers(model))
    silu = getattr(language.config, "hidden_act", None) == "silu"
    parts = [(layer, LAYER) for layer in layers]
    parts += [(getattr(layer, "self_attn", None), ATTENTION) for layer in layers]
    parts += [(getattr(layer, "mlp", None), MLP) for layer in layers]
    windows = any(getattr(getattr(layer, "self_attn", None), "sliding_window", None) for layer in layers)
    whole = all(hasattr(part, name) for part, names in parts for name in names)
    return silu and whole and not windows and hasattr(language, "rotary_emb")


class FusedStep:
    """A decoding pass of `model` as its weights are when this is made: adapters enter rounded to the dtype of
    the weights that they adapt, by two products for all layers that have one input."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        family = find_family(model.config.model_type)
        groups = [group for layer in family.decoder_layers(model) for group in _groups_of(layer)]
        self.joined = {group[0]: joined for group in groups if (joined := join_adapted(group))}
        self.inner_width = max((joined.inner_width for joined in self.joined.values()), default=0)
        self.inner = torch.empty(0)  # of the step at hand

    def logits(self, token: torch.Tensor, position: torch.Tensor, cache: TreeCache) -> torch.Tensor:
        """Returns the next-token logits (R, V) after token (R,) at rotary position (R,)."""
        family = find_family(self.model.config.model_type)
        language: Any = family.language_model(self.model)
        hidden = language.embed_tokens(token)
        angles = language.rotary_emb(hidden[:, None], position.expand(3, -1)[..., None])
        # Of the three axes, which are one for text, where the model has not merged them.
        cosine, sine = (part.reshape(-1, *part.shape[-2:])[: len(token), 0].contiguous() for part in angles)
        if self.joined:
            self.inner = hidden.new_ones(len(hidden), self.inner_width)
        delta = None
        for index, layer in enumerate(family.decoder_layers(self.model)):
            hidden, normed = _add_norm(hidden, delta, layer.input_layernorm)
            delta = self._attend(layer.self_attn, index, normed, cosine, sine, cache)
            hidden, normed = _add_norm(hidden, delta, layer.post_attention_layernorm)
            mlp: Any = layer.mlp
            gated = gate_product(*self._project((mlp.gate_proj, mlp.up_proj), normed))
            (delta,) = self._project((mlp.down_proj,), gated)
        return self.model.lm_head(_add_norm(hidden, delta, language.norm)[1])

    def _attend(
        self,
        attention: Any,
        layer: int,
        normed: torch.Tensor,
        cosine: torch.Tensor,
        sine: torch.Tensor,
        cache: TreeCache,
    ) -> torch.Tensor:
        query, key, value = (
            part.unflatten(-1, (-1, attention.head_dim))
            for part in self._project((attention.q_proj, attention.k_proj, attention.v_proj), normed)
        )
        query, key = (
            rotate(heads, cosine, sine, *_norm_of(getattr(attention, name, None)))
            for heads, name in ((query, "q_norm"), (key, "k_norm"))
        )
        grouped = query.unflatten(1, (key.shape[1], -1))
        out = cache.attend_token(layer, grouped, key, value, attention.scaling)
        return self._project((attention.o_proj,), out.flatten(1))[0]

    def _project(self, linears: Sequence[nn.Module], rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs of layers that have one input; each row of an output lies in one piece."""
        if joined := self.joined.get(linears[0]):
            return joined(rows, self.inner)
        return tuple(linear(rows) for linear in linears)


def _groups_of(layer: Any) -> tuple[Sequence[nn.Module], ...]:
    """The products of a decoder layer, those of one input together."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        (attention.q_proj, attention.k_proj, attention.v_proj),
        (attention.o_proj,),
        (mlp.gate_proj, mlp.up_proj),
        (mlp.down_proj,),
    )


def _add_norm(
    hidden: torch.Tensor, delta: torch.Tensor | None, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    return add_norm(hidden, delta, norm.weight, norm.variance_epsilon)


def _norm_of(norm: Any) -> tuple[torch.Tensor | None, float]:
    return (None, 0.0) if norm is None else (norm.weight, norm.variance_epsilon)
