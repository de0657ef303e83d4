"""Reading a response of any model: one that was trained to the form, or a base model."""

from ivgr.rewards.format import read_answer, read_think


def read_parts(text: str) -> tuple[str, str, list[str]]:
    """(think, answer, notes) of a response. Without a complete answer block the answer is what
    follows the reasoning, or else the whole text, and a note says so."""
    before, closed, after = text.partition("</think>")
    think = read_think(text).strip()
    if closed and "<think>" not in before:  # a chat template may open the block itself
        think = before.strip()
    if "<answer>" in text and "</answer>" in text.partition("<answer>")[2]:
        return think, read_answer(text), []
    if closed:
        answer = after.replace("<answer>", "").replace("</answer>", "").strip()
        return think, answer, ["no complete answer block: the answer is what follows </think>"]
    return think, text.strip(), ["no answer block: the answer is the whole reply"]
