"""Queries of the tiny world, and what stock `generate` answers."""

from ivgr.core.prompts import Prompts
from ivgr.toy.world import World, draw_samples


def queries_of(encoder, count, split="val"):
    return [encoder(sample) for sample in draw_samples(World(split, count, seed=5))]


def stock_greedy(tiny, query, stream):
    """The stock processor and `generate` on one prompt."""
    model, processor = tiny
    sample = query.sample
    messages = Prompts().messages(sample.question, len(sample.images), stream)
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor(text=[text], images=sample.open_images(), return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=72)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
