"""The comparisons of the study, declared before any of it is measured: its arms, the pairs that are compared,
and the measures of localization on which the first pair is tested."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Arm:
    """One way to train.

    title is what a table calls it; options are those of `ivgr fit` that set it apart from the
    config; trained is whether there is anything to train; tested, whether it gets every
    seed of the study, the others only the first few.
    """

    title: str
    options: dict[str, object] = field(default_factory=dict)
    trained: bool = True
    tested: bool = False


APART: dict[str, object] = {"model.rewards.consistency.weight": 0.0}
ARMS = {
    "cold": Arm("cold start", trained=False),
    "textual": Arm("textual only", {"data.streams": ["textual"], **APART}),
    "grounded": Arm("grounded only", {"data.streams": ["grounded"], **APART}),
    "both": Arm("both streams", APART, tested=True),
    "consistency": Arm("with consistency", {"model.rewards.archive.persistent": False}, tested=True),
    "archive": Arm("with archive (iVGR)"),
}

# (arm, what it is compared with), on the seeds that both have. The first is tested.
PAIRS = (("consistency", "both"), ("archive", "both"), ("archive", "consistency"))

# Of the textual stream, and adjusted for being three (Holm): how well its objects' boxes can be read
# from its hidden states, how much more its reasoning loses with the objects' image tokens than with as
# many others, and whether its words name the right places. (Its answer loses next to nothing with them,
# since the reasoning has said it by then.)
LOCALIZATION = ("probe/textual/readout_r2", "probe/textual/causal_reasoning", "text/place_accuracy")

# "image twice" is text mode with the picture shown a second time: what of tool mode's difference is due
# to there being several images, whatever they show.
MEASURES = {
    "text/accuracy": "accuracy, text",
    "grounded/accuracy": "accuracy, grounded",
    "tool/accuracy": "accuracy, tool",
    "twice/accuracy": "accuracy, image twice",
    "text/place_accuracy": "place accuracy",
    "probe/textual/readout_r2": "read-out R²",
    "probe/textual/causal_reasoning": "causal, reasoning",
    "probe/textual/causal_drop": "causal, answer",
    "grounded/iou": "IoU, grounded",
}
