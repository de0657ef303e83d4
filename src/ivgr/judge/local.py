"""A Hugging Face text model in this process as the judge.

It picks among the allowed verdicts by their probability after the prompt (a constrained
choice), so that every question gets an answer and no reply needs to be trusted.
"""

import math
import os

import torch
from jinja2.exceptions import TemplateError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ivgr.core.errors import refusals
from ivgr.core.settings import Device, Dtype, PositiveInt, checked, dtype_of
from ivgr.judge.protocol import Agreement, Comparison
from ivgr.judge.rubric import AGREEMENT, CONSISTENCY, Rubric, agreement_data, comparison_data


@checked("model.judge.")
class LocalJudge:
    """The most probable verdict of a causal language model.

    Args:
        path: HF directory or hub id of the model.
        dtype: Weight dtype.
        device: A torch device; null takes this process's GPU, the CPU where there is none.
        batch: Rows (a question with one of its verdicts) in one pass.
        max_prompt_tokens: A question with a longer prompt gets no verdict.
    """

    def __init__(
        self,
        path: str,
        dtype: Dtype = "bfloat16",
        device: Device | None = None,
        batch: PositiveInt = 16,
        max_prompt_tokens: PositiveInt = 8192,
    ) -> None:
        own = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        self.device = device or own
        self.batch = batch
        self.max_prompt_tokens = max_prompt_tokens
        with refusals("model.judge.path", f"{path!r} must be a causal language model", SafetensorError):
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype_of(dtype), trust_remote_code=False, use_safetensors=True
            )
        self.model = model.eval().requires_grad_(False).to(self.device)  # pyright: ignore[reportArgumentType]  transformers wraps it

    def agree(self, questions: list[Agreement]) -> list[bool | None]:
        """See `Judge.agree`."""
        return self._judge(AGREEMENT, [agreement_data(question) for question in questions])

    def compare(self, comparisons: list[Comparison]) -> list[float | None]:
        """See `Judge.compare`; blank reasoning agrees with nothing: 0.0."""
        verdicts = self._judge(CONSISTENCY, [comparison_data(comparison) for comparison in comparisons])
        return [v if c.reasoning.strip() else 0.0 for c, v in zip(comparisons, verdicts, strict=True)]

    def _judge(self, rubric: Rubric, data: list[dict]) -> list:
        endings = [self._ids(rubric.write(value)) for value in rubric.values]
        verdicts: list = [None] * len(data)
        prompts = {index: self._prompt_ids(rubric, entry) for index, entry in enumerate(data)}
        asked = [index for index, ids in prompts.items() if len(ids) <= self.max_prompt_tokens]
        asked.sort(key=lambda index: len(prompts[index]))
        rows = [(prompts[index], ending) for index in asked for ending in endings]
        logps = [
            value for i in range(0, len(rows), self.batch) for value in self._logps(rows[i : i + self.batch])
        ]
        for n, index in enumerate(asked):
            own = logps[n * len(endings) : (n + 1) * len(endings)]
            if not any(map(math.isnan, own)):
                verdicts[index] = rubric.values[own.index(max(own))]
        return verdicts

    def _prompt_ids(self, rubric: Rubric, data: dict) -> list[int]:
        """Returns the prompt by the model's chat template (in one message if it has no system role), or as
        plain text without a template."""
        chat = rubric.conversation(data)
        joined = "\n\n".join(message["content"] for message in chat)
        if not self.tokenizer.chat_template:
            return self._ids(f"{joined}\n\n")
        try:
            return self._render(chat)
        except TemplateError:
            return self._render([{"role": "user", "content": joined}])

    def _render(self, chat: list[dict]) -> list[int]:
        return self._ids(self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.inference_mode()
    def _logps(self, rows: list[tuple[list[int], list[int]]]) -> list[float]:
        """Summed log-probs of each row's ending after its prompt; rows are padded on the
        left, so that the logits of all endings stand in the last columns."""
        width = max(len(prompt) + len(ending) for prompt, ending in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, ending) in enumerate(rows):
            tokens = torch.tensor(prompt + ending)
            ids[row, -len(tokens) :], mask[row, -len(tokens) :] = tokens, 1
        keep = max(len(ending) for _, ending in rows) + 1
        logits = (
            self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(self.device),
                logits_to_keep=keep,
                use_cache=False,
            )
            .logits.float()
            .log_softmax(-1)
            .cpu()
        )
        steps = [
            logits[row, -len(e) - 1 : -1].gather(-1, torch.tensor(e)[:, None])
            for row, (_, e) in enumerate(rows)
        ]
        return [step.sum().item() for step in steps]
