"""VLMEvalKit's rules for one reply and for a whole benchmark, stated a second time from its source
(open-compass/VLMEvalKit: vlmeval/utils/matching_util.py, vlmeval/smp/misc.py, vlmeval/dataset/image_mcq.py,
image_yorn.py, image_vqa.py, refcoco.py and utils/ of these), step by step and without a judge.

Rows are dicts of texts, as its TSV holds them; an empty cell is a column the row does not have.
"""

import ast
import re
import statistics

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

REFUSED = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def options_of(row):
    if row.get("choices"):
        return dict(zip(LETTERS, map(str, ast.literal_eval(row["choices"])), strict=False))
    return {letter: row[letter] for letter in LETTERS if row.get(letter)}


def infer(reply, options):
    """An option's letter, "Z" or False."""
    if "Failed to obtain answer via API" not in reply:
        for start in REFUSED:
            if reply.find(start) != -1:
                return "Z"
        flat = reply
        for mark in ".()[],:;!*#{}":
            flat = " ".join(flat.split(mark))
        words = flat.split()
        present = [letter for letter in options if letter in words]
        if len(present) == 1:
            if words.index(present[0]) > len(words) - 5:
                return present[0]
        elif not present and "Z" in words:
            return "Z"
        stated = re.search(r"(?i)answer\s+is\s+[*]*(A|B|C|D)", reply)
        if stated and stated[1].upper() in options:
            return stated[1].upper()
    reply = reply.lower()
    if len(reply) <= 2 * len("".join(options.values())):
        inside = [letter for letter, text in options.items() if reply.find(text.lower()) >= 0]
        if len(inside) == 1:
            return inside[0]
    return False


def option_hit(row, reply):
    return infer(reply, options_of(row)) == row["answer"]


def letter_hit(row, reply):
    """MME-RealWorld and TreeBench: the first block in capitals, or the reply as it is."""
    _before, opened, rest = reply.partition("<answer>")
    inner, closed, _ = rest.partition("</answer>")
    text = (inner.strip().upper() if opened and closed else reply).strip()
    for kind in ("The best answer is", "The correct answer is", "The answer is", "The answer",
                 "The best option is", "The correct option is", "Best answer:", "Best option:"):  # fmt: skip
        text = "".join(text.split(kind))
    capitals = [c for c in text if c in "ABCDE"]
    if not capitals and len(text.split()) > 10:
        return row["answer"] == ""
    bracketed = [letter for letter in "ABCDE" if f"({letter.lower()})".find(text.lower()) >= 0]
    return (capitals or bracketed or [""])[0] == row["answer"]


def yes_no(reply):
    """ "Yes", "No" or "Unknown"."""
    text = out = reply.lower()
    numbers = re.search(r"\d,\d", text) is not None
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        out = out.replace(mark, "" if numbers or f"{mark} " in text or f" {mark}" in text else " ")
    pieces, left = [], 32
    for place, c in enumerate(out):
        around = out[max(place - 1, 0) : place] + out[place + 1 : place + 2]
        if c == "." and left and not any(a.isdigit() for a in around):
            left -= 1
        else:
            pieces.append(c)
    words = "".join(pieces).split()
    return {(True, False): "Yes", (False, True): "No"}.get(("yes" in words, "no" in words), "Unknown")


def relaxed_hit(row, reply):
    try:
        found = ast.literal_eval(row["answer"])
    except (ValueError, SyntaxError):
        found = None
    golds = found if isinstance(found, list) else [row["answer"]]
    return any(relaxed(str(gold), reply.strip()) for gold in golds)


def number(text):
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def relaxed(gold, reply):
    wanted, said = number(gold), number(reply)
    if said is not None and wanted:
        return abs(said - wanted) <= 0.05 * abs(wanted)
    return gold.lower() == reply.lower()


def math_hit(row, reply):
    """MathVista's check of what a model extracted, here of the reply itself."""
    if row["question_type"] == "multi_choice":
        return infer(reply, options_of(row)) == row["answer_option"]
    kind = {"integer": int, "float": float}.get(row["answer_type"])
    try:
        return kind is not None and kind(reply) == kind(row["answer"])
    except ValueError:
        return False


def box_hit(row, reply):
    number = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
    gap = r"(?:\s*,\s*|\s+)"
    found = re.search(rf"\[\s*{gap.join([f'({number})'] * 4)}\s*\]", reply)
    said = [float(n) for n in (found.groups() if found else re.findall(number, reply)[:4])]
    if len(said) < 4:
        return False
    wide, high = float(row["width"]), float(row["height"])
    most = max(map(abs, said))
    unit = [wide, high] if most <= 1.5 else [wide / 1000, high / 1000] if most <= 1000 else [1, 1]
    x1, y1, x2, y2 = (
        min(max(n * u, 0), side) for n, u, side in zip(said, unit * 2, [wide, high] * 2, strict=True)
    )
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    a1, b1, a2, b2 = (float(row[f"bbox_{side}"]) for side in ("x1", "y1", "x2", "y2"))
    inner = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
    return inner >= 0.5 * ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - inner) and inner > 0


def percent(hits):
    return 100 * sum(hits) / len(hits)


def mean(rows, replies, hit):
    return percent([hit(row, reply) for row, reply in zip(rows, replies, strict=True)])


def mean_of(column):
    def score(rows, replies, hit):
        values = sorted({row[column] for row in rows})
        own = [[(r, t) for r, t in zip(rows, replies, strict=True) if r[column] == value] for value in values]
        return statistics.mean(percent([hit(*pair) for pair in pairs]) for pairs in own)

    return score


def pope(rows, replies, hit):
    """A row once for each split that it names; F1 of yes."""
    long = [
        (r["answer"], yes_no(t)) for r, t in zip(rows, replies, strict=True) for _ in r["category"].split(",")
    ]
    both = sum(gold == said == "Yes" for gold, said in long)
    said, true = sum(s == "Yes" for _, s in long), sum(g == "Yes" for g, _ in long)
    if not both:
        return 0.0
    precision, recall = both / said, both / true
    return 100 * 2 * precision * recall / (precision + recall)


def pairs(rows, replies, hit):
    hits = [hit(row, reply) for row, reply in zip(rows, replies, strict=True)]
    return percent([a and b for a, b in zip(hits[::2], hits[1::2], strict=True)])


def splits(rows, replies, hit):
    """The mean of the splits that it knows, if there are any."""
    known = [f"{name}_{part}" for name, parts in (("RefCOCO", ("val", "testA", "testB")), ("RefCOCO+", (
        "val", "testA", "testB")), ("RefCOCOg", ("val", "test"))) for part in parts]  # fmt: skip
    own = {name: [n for n, row in enumerate(rows) if row["split"] == name] for name in known}
    found = [mean([rows[n] for n in at], [replies[n] for n in at], hit) for at in own.values() if at]
    return statistics.mean(found) if found else mean(rows, replies, hit)


# By benchmark: how a reply hits, and how hits become the headline.
RULES = {
    "vstar": (option_hit, mean), "hrbench4k": (option_hit, mean_of("cycle_category")),
    "hrbench8k": (option_hit, mean_of("cycle_category")), "mme-realworld-lite": (letter_hit, mean),
    "pope": (None, pope), "realworldqa": (option_hit, mean), "cv-bench-2d": (option_hit, mean_of("source")),
    "cv-bench-3d": (option_hit, mean), "treebench": (letter_hit, mean), "chartqa": (relaxed_hit, mean),
    "ai2d": (option_hit, mean), "mmstar": (option_hit, mean), "mathvista": (math_hit, mean),
    "refcoco": (box_hit, splits), "mmvp": (option_hit, pairs), "blink": (option_hit, mean),
}  # fmt: skip


def headline(name, rows, replies):
    """In percent."""
    hit, gather = RULES[name]
    return gather(rows, replies, hit)


def block(name, reply):
    """What stands in the answer block behind the last </think>, else the reply; for a rule that cuts the
    block out itself, with its tags."""
    rest = reply[reply.rfind("</think>") + 8 :] if "</think>" in reply else reply
    found = re.search("<answer>(.*?)</answer>", rest, re.DOTALL)
    if not found:
        return reply
    return f"<answer>{found[1]}</answer>" if RULES[name][0] is letter_hit else found[1].strip()
