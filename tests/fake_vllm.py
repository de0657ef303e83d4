"""A `vllm` module with the real signatures, that runs the stock HF model inside.

Every call is bound against the source of the installed vllm, or else vllm_signatures.json;
weights are fused, padded, named, forgotten in sleep and taken back as vLLM does; images are put
into prompts by the HF processor and responses drawn by stock `generate`.
"""

import json
from types import ModuleType, SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList
from vllm_signatures import SIGNATURES, installed_signatures, signature_of

REAL = installed_signatures() or json.loads(SIGNATURES.read_text())
TAGS = {"weights", "kv_cache"}


def bind(name: str, *args, **kwargs) -> dict:
    """The arguments by name, as the real callable would see them."""
    return signature_of(REAL["signatures"][name]).bind(*args, **kwargs).arguments


class FakeModel:
    """vLLM's module of a Qwen2-VL: parameters by vLLM's names, over those of a HF model."""

    def __init__(self, policy) -> None:
        self.shards, self.parameters = {}, {}
        for name, weight in policy.named_parameters():
            place, _ = self.route(name)
            self.shards.setdefault(place, {})[name] = weight.shape
        for place, shards in self.shards.items():
            first, *rest = shards.values()
            rows = first[0] + sum(shape[0] for shape in rest) if first else 0
            if place.endswith("embed_tokens.weight"):
                rows = -(-rows // 64) * 64
            self.parameters[place] = torch.full((rows, *first[1:]), torch.nan)

    def route(self, name: str) -> tuple[str, str]:
        """vLLM's name for a HF name, and what it is called before it is fused."""
        for old, new in REAL["mappers"]["Qwen2VLForConditionalGeneration"]["orig_to_new_prefix"].items():
            if name.startswith(old):
                name = name.replace(old, new, 1)
        part = "Qwen2VisionTransformer" if name.startswith("visual.") else "Qwen2Model"
        fused = name
        for old, (new, _) in REAL["mappers"][part]["orig_to_new_stacked"].items():
            if old in fused:
                fused = fused.replace(old, new, 1)
        return fused, name

    def named_parameters(self):
        return iter(self.parameters.items())

    def load_weights(self, *args, **kwargs) -> set[str]:
        loaded = set()
        call = bind("Qwen2VLForConditionalGeneration.load_weights", self, *args, **kwargs)
        for name, weight in call["weights"]:
            place, _ = self.route(name)
            if place not in self.parameters and name.endswith(".bias"):
                continue  # vLLM ignores these without a word
            if place not in self.parameters:
                raise ValueError(f"There is no module or parameter named {place!r}")
            self._slice(place, name, weight.shape).copy_(weight)
            loaded.add(place)
        return loaded

    def _slice(self, place: str, name: str, shape) -> torch.Tensor:
        start = 0
        for shard, own in self.shards.get(place, {}).items():
            if shard == name:
                assert own == shape, f"{name}: {tuple(shape)} is not {tuple(own)}"
                return self.parameters[place][start : start + own[0]]
            start += own[0]
        raise ValueError(f"{name} is no shard of {place}")

    def write_to(self, policy) -> None:
        for name, weight in policy.named_parameters():
            weight.data.copy_(self._slice(self.route(name)[0], name, weight.shape))

    def forget(self) -> None:
        for parameter in self.parameters.values():
            parameter.fill_(torch.nan)


class SamplingParams(SimpleNamespace):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(**bind("SamplingParams", *args, **kwargs))


class LLM:
    """One for a process, awake when made, weights undefined; `made` and `calls` tell the tests."""

    made: list["LLM"] = []

    def __init__(self, *args, **kwargs) -> None:
        call = bind("LLM.__init__", self, *args, **kwargs)
        bind("EngineArgs", **call.pop("kwargs", {}) | {k: v for k, v in call.items() if k == "model"})
        assert kwargs["enable_sleep_mode"] and kwargs["logprobs_mode"] in REAL["logprobs_modes"]
        self.arguments, self.calls, self.asleep, self.seen = kwargs, [], set(), []
        self.hf = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(kwargs["model"])).eval()
        self.processor = AutoProcessor.from_pretrained(kwargs["model"])
        self.model = FakeModel(self.hf)
        LLM.made.append(self)

    def sleep(self, *args, **kwargs) -> None:
        level = bind("LLM.sleep", self, *args, **kwargs)["level"]
        self.calls.append(("sleep", level))
        self.asleep = set(TAGS)
        if level == 2:
            self.model.forget()

    def wake_up(self, *args, **kwargs) -> bool:
        tags = bind("LLM.wake_up", self, *args, **kwargs)["tags"]
        assert set(tags) <= self.asleep
        self.calls.append(("wake_up", *tags))
        self.asleep -= set(tags)
        return not self.asleep

    def apply_model(self, *args, **kwargs) -> list:
        assert "weights" not in self.asleep
        self.calls.append(("apply_model",))
        return [bind("LLM.apply_model", self, *args, **kwargs)["func"](self.model)]

    def reset_prefix_cache(self, *args, **kwargs) -> bool:
        bind("LLM.reset_prefix_cache", self, *args, **kwargs)
        self.calls.append(("reset_prefix_cache",))
        return True

    @torch.no_grad()
    def generate(self, *args, **kwargs) -> list[SimpleNamespace]:
        call = bind("LLM.generate", self, *args, **kwargs)
        assert not self.asleep
        self.calls.append(("generate", len(call["prompts"])))
        self.model.write_to(self.hf)
        assert all(not weight.isnan().any() for weight in self.hf.parameters())
        pairs = zip(call["prompts"], call["sampling_params"], strict=True)
        return [self._complete(str(i), prompt, params) for i, (prompt, params) in enumerate(pairs)]

    def _complete(self, request: str, prompt: dict, params: SamplingParams) -> SimpleNamespace:
        options = {row[0] for row in REAL["signatures"]["_PromptOptions"]}
        bind("TokensPrompt", **{name: value for name, value in prompt.items() if name not in options})
        self.seen.append((prompt, params))
        ids, vision = self._expand(prompt)
        completions = [self._draw(ids, vision, params, index) for index in range(params.n)]
        call = bind(
            "RequestOutput.__init__", self, request, None, ids, None, outputs=completions, finished=True
        )
        return SimpleNamespace(**call)

    def _expand(self, prompt: dict) -> tuple[list[int], dict]:
        """As vLLM: a token for an image becomes as many as the processor makes of it."""
        images = prompt.get("multi_modal_data", {}).get("image", [])
        if not images:
            return prompt["prompt_token_ids"], {}
        limits = self.arguments.get("mm_processor_kwargs") or {}
        vision = self.processor.image_processor(images=images, return_tensors="pt", **limits)
        counts = iter((vision["image_grid_thw"].prod(-1) // 4).tolist())
        pad = self.hf.config.image_token_id
        ids = [
            t for token in prompt["prompt_token_ids"] for t in [token] * (next(counts) if token == pad else 1)
        ]
        return ids, dict(vision)

    def _draw(self, ids: list[int], vision: dict, params, index: int) -> SimpleNamespace:
        assert params.ignore_eos and not params.detokenize and params.flat_logprobs and params.logprobs == 0
        inputs = torch.tensor([ids])
        kinds = (inputs == self.hf.config.image_token_id).int()
        greedy = params.temperature == 0
        sampling = {} if greedy else {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0}
        with torch.random.fork_rng():
            torch.manual_seed(0 if greedy else params.seed + index)
            output = self.hf.generate(
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                mm_token_type_ids=kinds,
                **vision,
                do_sample=not greedy,
                **sampling,
                max_new_tokens=params.max_tokens,
                eos_token_id=params.stop_token_ids,
                suppress_tokens=[token for token, bias in params.logit_bias.items() if bias == -torch.inf],
                logits_processor=LogitsProcessorList(),
                output_logits=True,
                return_dict_in_generate=True,
            )
        tokens = output.sequences[0, len(ids) :]
        logp = torch.cat(output.logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        flat = bind("FlatLogprobs", token_ids=tokens.tolist(), logprobs=logp.tolist())
        ended = int(tokens[-1]) in params.stop_token_ids
        return SimpleNamespace(
            **bind(
                "CompletionOutput",
                index=index,
                text="",
                token_ids=tokens.tolist(),
                cumulative_logprob=None,
                logprobs=SimpleNamespace(**flat),
                finish_reason="stop" if ended else "length",
            )
        )


def fake_module() -> ModuleType:
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    LLM.made.clear()
    return module
