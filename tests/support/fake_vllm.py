"""A `vllm` module with the real signatures, that runs the stock HF model inside.

Every call is bound against the source of the installed vllm, or else vllm_signatures.json;
weights are fused, padded, named, forgotten in sleep and taken back as vLLM does; images are put
into prompts by the HF processor and responses drawn by stock `generate`. What vLLM loses or
keeps too long is lost and kept here, too: sleep of level 2 discards all that lies with the weights and
restores registered buffers, "dummy" fills persistent buffers with noise, and what was
computed with earlier weights is used again until its cache is cleared.
"""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from types import ModuleType, SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LogitsProcessorList

from support.vllm_signatures import SIGNATURES, installed_signatures, signature_of

REAL = installed_signatures() or json.loads(SIGNATURES.read_text())
TAGS = {"weights", "kv_cache"}
PARTS = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VisionTransformer"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3_VisionTransformer"),
}


def bind(name: str, *args, **kwargs) -> dict:
    """The arguments by name, as the real callable would see them."""
    return signature_of(REAL["signatures"][name]).bind(*args, **kwargs).arguments


class FakeModel:
    """vLLM's module: parameters by vLLM's names, over those of a HF model; two buffers, by which pixels
    are normalised once more; and, for Qwen3-VL, tensors that nobody has registered, which are
    added to what the first layers give."""

    def __init__(self, hf) -> None:
        self.whole, self.tower = PARTS[hf.config.model_type]
        self.shards, self.weights = {}, {}
        for name, weight in hf.named_parameters():
            place, _ = self.route(name)
            self.shards.setdefault(place, {})[name] = weight.shape
        for place, shards in self.shards.items():
            first, *rest = shards.values()
            rows = first[0] + sum(shape[0] for shape in rest) if first else 0
            if place.endswith("embed_tokens.weight"):
                rows = -(-rows // 64) * 64
            self.weights[place] = torch.full((rows, *first[1:]), torch.nan)
        self.norm = {"visual.input_norm.weight": torch.ones(3), "visual.input_norm.bias": torch.zeros(3)}
        depth = len(getattr(hf.config.vision_config, "deepstack_visual_indexes", ()))
        width = hf.config.text_config.hidden_size
        self.deepstack_input_embeds = [torch.zeros(512, width) for _ in range(depth)]

    def route(self, name: str) -> tuple[str, str]:
        """vLLM's name for a HF name, and what it is called before it is fused."""
        for old, new in REAL["mappers"][self.whole]["orig_to_new_prefix"].items():
            if name.startswith(old):
                name = name.replace(old, new, 1)
        part = self.tower if name.startswith("visual.") else "Qwen2Model"
        fused = name
        for old, (new, _) in REAL["mappers"][part]["orig_to_new_stacked"].items():
            if old in fused:
                fused = fused.replace(old, new, 1)
        return fused, name

    def modules(self) -> Iterator["FakeModel"]:
        yield self

    def named_parameters(self):
        return iter(self.weights.items())

    def parameters(self) -> Iterator[torch.Tensor]:
        return iter(self.weights.values())

    def buffers(self) -> Iterator[torch.Tensor]:
        return iter(self.norm.values())

    def load_weights(self, *args, **kwargs) -> set[str]:
        """Refuses as vLLM does: ValueError for an unknown name, AttributeError for one below a fused
        layer, AssertionError for another shape, RuntimeError for one of a shard."""
        loaded = set()
        call = bind(f"{self.whole}.load_weights", self, *args, **kwargs)
        for name, weight in call["weights"]:
            place, _ = self.route(name)
            if place not in self.weights and name.endswith(".bias"):
                continue  # vLLM ignores these without a word
            if any(place.startswith(f"{known.rpartition('.')[0]}.") for known in self.weights):
                if place not in self.weights:
                    raise AttributeError(f"'QKVParallelLinear' object has no attribute {place!r}")
            elif place not in self.weights:
                raise ValueError(f"There is no module or parameter named {place!r}")
            self._slice(place, name, weight.shape).copy_(weight)
            loaded.add(place)
        return loaded

    def _slice(self, place: str, name: str, shape) -> torch.Tensor:
        start = 0
        for shard, own in self.shards.get(place, {}).items():
            if shard == name:
                if own != shape and len(self.shards[place]) > 1:
                    raise RuntimeError(f"start (0) + length ({own[0]}) exceeds dimension size ({shape[0]}).")
                assert own == shape, f"{name}: {tuple(shape)} is not {tuple(own)}"
                return self.weights[place][start : start + own[0]]
            start += own[0]
        raise ValueError(f"{name} is no shard of {place}")

    def write_to(self, hf, weights: dict[str, torch.Tensor] | None = None, part: str = "") -> None:
        """Gives `hf` the values of `weights`, its own if None, of those whose HF name begins with `part`."""
        own = self.weights
        self.weights = own if weights is None else weights
        for name, weight in hf.named_parameters():
            if name.startswith(part):
                weight.data.copy_(self._slice(self.route(name)[0], name, weight.shape))
        self.weights = own

    def discard(self) -> None:
        for tensor in chain(self.parameters(), self.buffers(), self.deepstack_input_embeds):
            tensor.fill_(torch.nan)


class DummyModelLoader:
    """Noise for weights, and for buffers that a checkpoint would hold."""

    def load_weights(self, *args, **kwargs) -> None:
        call = bind("DummyModelLoader.load_weights", self, *args, **kwargs)
        for tensor in chain(call["model"].parameters(), call["model"].buffers()):
            tensor.uniform_(-1e-3, 1e-3)


LOADERS: dict[str, type] = {}


def register_model_loader(load_format: str) -> Callable:
    def register(loader: type) -> type:
        LOADERS[load_format] = loader
        return loader

    return register


class Worker:
    """What has the memory: the model."""

    def __init__(self, model: FakeModel) -> None:
        self.model, self.saved = model, {}
        self.asleep: set[str] = set()

    def sleep(self, *args, **kwargs) -> None:
        if bind("Worker.sleep", self, *args, **kwargs)["level"] == 2:
            assert "weights" not in self.asleep, "this memory is gone"
            self.saved = {name: buffer.clone() for name, buffer in self.model.norm.items()}
            self.model.discard()
        self.asleep = set(TAGS)

    def wake_up(self, *args, **kwargs) -> None:
        tags = bind("Worker.wake_up", self, *args, **kwargs).get("tags") or TAGS
        if "weights" in tags:
            for name, buffer in self.saved.items():
                self.model.norm[name].copy_(buffer)
            self.saved = {}
        self.asleep -= set(tags)


class Engine:
    """`LLM.llm_engine`: requests, awaited and computed; caches, which know nothing of weights."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.calls = worker, []
        self.output_processor = SimpleNamespace(request_states={})
        self.computed: set[str] = set()
        self.sleeping: set[str] = set()
        self.paused = False
        self.prefixes, self.images, self.pixels = {}, {}, set()

    def is_sleeping(self, *args, **kwargs) -> bool:
        bind("LLMEngine.is_sleeping", self, *args, **kwargs)
        return self.paused or bool(self.sleeping)

    def abort_request(self, *args, **kwargs) -> None:
        call = bind("LLMEngine.abort_request", self, *args, **kwargs)
        for request in call["request_ids"]:
            self.output_processor.request_states.pop(request)
            self.computed.discard(request)

    def reset_encoder_cache(self, *args, **kwargs) -> None:
        bind("LLMEngine.reset_encoder_cache", self, *args, **kwargs)
        self.calls.append(("reset_encoder_cache",))
        self.images.clear()

    def pause(self) -> None:
        """Aborts where requests are computed, not where they are awaited."""
        self.paused = True
        self.computed.clear()
        self.prefixes.clear()
        self.images.clear()
        self.pixels.clear()

    def sleep(self, level: int) -> None:
        self.pause()
        if self.sleeping:
            return  # as vLLM 0.30: "Executor is already sleeping."
        self.worker.sleep(level=level)
        self.sleeping = set(TAGS)

    def wake_up(self, tags: list[str]) -> None:
        if not set(tags) <= self.sleeping:
            return  # "Tag is not in sleeping tags"
        self.worker.wake_up(tags=tags)
        self.sleeping -= set(tags)
        self.paused = bool(self.sleeping)


class SamplingParams(SimpleNamespace):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(**bind("SamplingParams", *args, **kwargs))


class LLM:
    """One for a process, awake when made, weights undefined; `made` and `calls` tell the tests. What
    stands in `failures` is raised once: "sleep" before anything else, "asleep" after the memory is
    gone, "wake_up", "apply_model", and "step" when the second response is due."""

    made: list["LLM"] = []

    def __init__(self, *args, **kwargs) -> None:
        call = bind("LLM.__init__", self, *args, **kwargs)
        bind("EngineArgs", **call.pop("kwargs", {}) | {k: v for k, v in call.items() if k == "model"})
        assert kwargs["enable_sleep_mode"] and kwargs["logprobs_mode"] in REAL["logprobs_modes"]
        self.arguments, self.seen, self.failures = kwargs, [], {}
        config = AutoConfig.from_pretrained(kwargs["model"])
        rope = config.text_config.rope_parameters
        rope |= kwargs.get("hf_overrides", {}).get("text_config", {}).get("rope_parameters", {})
        self.hf = AutoModelForImageTextToText.from_config(config).eval()
        if config.model_type == "qwen3_vl" and not rope.get("mrope_interleaved"):
            put_in_blocks(self.hf.model.language_model.rotary_emb)
        self.processor = AutoProcessor.from_pretrained(kwargs["model"])
        self.model = FakeModel(self.hf)
        for layer, held in zip(self.hf.model.language_model.layers, self._held(), strict=False):
            layer.register_forward_hook(lambda _, __, output, held=held: output + held(output.shape[1]))
        LOADERS[kwargs["load_format"]]().load_weights(self.model, None)
        self.worker = Worker(self.model)
        self.llm_engine = Engine(self.worker)
        self.calls, self.snapshots, self.count = self.llm_engine.calls, [], 0
        LLM.made.append(self)

    def _held(self) -> list[Callable]:
        return [lambda n, i=i: self.model.deepstack_input_embeds[i][:n] for i in range(self._depth())]

    def _depth(self) -> int:
        return len(self.model.deepstack_input_embeds)

    @property
    def asleep(self) -> set[str]:
        return self.worker.asleep

    def _fail(self, where: str) -> None:
        if where in self.failures:
            raise self.failures.pop(where)

    def sleep(self, *args, **kwargs) -> None:
        level = bind("LLM.sleep", self, *args, **kwargs)["level"]
        self._fail("sleep")
        if "asleep" in self.failures:
            self.llm_engine.pause()
            self.worker.sleep(level=level)
            self._fail("asleep")
        self.calls.append(("sleep", level))
        self.llm_engine.sleep(level)

    def wake_up(self, *args, **kwargs) -> None:
        tags = bind("LLM.wake_up", self, *args, **kwargs)["tags"]
        self._fail("wake_up")
        self.calls.append(("wake_up", *tags))
        self.llm_engine.wake_up(tags)

    def collective_rpc(self, *args, **kwargs) -> list:
        call = bind("LLM.collective_rpc", self, *args, **kwargs)
        return [getattr(self.worker, call["method"])()]

    def apply_model(self, *args, **kwargs) -> list:
        assert "weights" not in self.asleep
        self._fail("apply_model")
        self.calls.append(("apply_model",))
        return [bind("LLM.apply_model", self, *args, **kwargs)["func"](self.model)]

    def reset_prefix_cache(self, *args, **kwargs) -> bool:
        bind("LLM.reset_prefix_cache", self, *args, **kwargs)
        self.calls.append(("reset_prefix_cache",))
        if self.llm_engine.computed:
            return False
        self.llm_engine.prefixes.clear()
        return True

    def reset_mm_cache(self, *args, **kwargs) -> None:
        bind("LLM.reset_mm_cache", self, *args, **kwargs)
        self.calls.append(("reset_mm_cache",))
        self.llm_engine.pixels.clear()

    @torch.no_grad()
    def generate(self, *args, **kwargs) -> list[SimpleNamespace]:
        call = bind("LLM.generate", self, *args, **kwargs)
        assert not self.asleep and not self.llm_engine.is_sleeping()
        self.calls.append(("generate", len(call["prompts"])))
        self.model.write_to(self.hf)
        assert all(not weight.isnan().any() for weight in self.hf.parameters())
        self._take_snapshot()
        awaited = self.llm_engine.output_processor.request_states
        for prompt, params in zip(call["prompts"], call["sampling_params"], strict=True):
            self.count += 1
            awaited[str(self.count)] = prompt, params
            self.llm_engine.computed.add(str(self.count))
        outputs = []
        for request, (prompt, params) in list(awaited.items()):
            if outputs:
                self._fail("step")
            outputs.append(self._complete(request, prompt, params))
            del awaited[request]
            self.llm_engine.computed.discard(request)
        return outputs

    def _take_snapshot(self) -> None:
        """Keeps the weights unless they are those of last time, rows that pad the vocabulary aside."""
        now = self.model.weights
        same = self.snapshots and all(
            torch.equal(old.nan_to_num(), now[name].nan_to_num()) for name, old in self.snapshots[-1].items()
        )
        if not same:
            self.snapshots.append(deepcopy(now))

    def _complete(self, request: str, prompt: dict, params: SamplingParams) -> SimpleNamespace:
        options = {row[0] for row in REAL["signatures"]["_PromptOptions"]}
        bind("TokensPrompt", **{name: value for name, value in prompt.items() if name not in options})
        self.seen.append((prompt, params))
        ids, vision = self._expand(prompt)
        self._recall(ids, [image.tobytes() for image in prompt.get("multi_modal_data", {}).get("image", [])])
        completions = [self._draw(ids, vision, params, index) for index in range(params.n)]
        call = bind(
            "RequestOutput.__init__", self, request, None, ids, None, outputs=completions, finished=True
        )
        return SimpleNamespace(**call)

    def _recall(self, ids: list[int], images: list[bytes]) -> None:
        """The weights with which prompt and images were computed: at their first time since their
        caches were cleared."""
        engine, now = self.llm_engine, len(self.snapshots) - 1
        engine.pixels |= set(images)
        seen = [engine.images.setdefault(image, now) for image in images]
        read = engine.prefixes.setdefault((*ids, *images), now)
        self.model.write_to(self.hf, self.snapshots[read])
        if seen and read == now:
            self.model.write_to(self.hf, self.snapshots[min(seen)], "model.visual.")

    def _expand(self, prompt: dict) -> tuple[list[int], dict]:
        """As vLLM: a token for an image becomes as many as the processor makes of it."""
        images = prompt.get("multi_modal_data", {}).get("image", [])
        if not images:
            return prompt["prompt_token_ids"], {}
        limits = self.arguments.get("mm_processor_kwargs") or {}
        vision = self.processor.image_processor(images=images, return_tensors="pt", **limits)
        pixels = vision["pixel_values"]
        scale, shift = self.model.norm.values()
        normalised = pixels.view(len(pixels), 3, -1) * scale[:, None] + shift[:, None]
        vision["pixel_values"] = normalised.view_as(pixels)
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


def put_in_blocks(rotary) -> None:
    """The rotary frequencies of Qwen2-VL: those of time first, then of rows, then of columns."""

    def in_blocks(frequencies: torch.Tensor) -> torch.Tensor:
        parts = frequencies.split(list(rotary.mrope_section), dim=-1)
        half = torch.cat([part[axis] for axis, part in enumerate(parts)], dim=-1)
        return torch.cat((half, half), dim=-1)

    rotary.recomposition_frequencies = in_blocks


def fake_modules() -> dict[str, ModuleType]:
    """The package and the modules of it that are imported by name, for sys.modules."""
    LLM.made.clear()
    LOADERS.update(dummy=DummyModelLoader)
    contents = {
        "vllm": {"LLM": LLM, "SamplingParams": SamplingParams},
        "vllm.model_executor.model_loader": {"register_model_loader": register_model_loader},
        "vllm.model_executor.model_loader.dummy_loader": {"DummyModelLoader": DummyModelLoader},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        vars(module).update(contents[name])
    return modules
