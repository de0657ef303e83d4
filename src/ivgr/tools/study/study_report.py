"""The results of the study: results.json, and results.md as its tables.

In: each run's figures. Out: every arm's estimates over seeds, and the paired differences with
exact tests.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ivgr.callbacks.run_metadata import environment
from ivgr.core.atomic_files import write_atomically, write_json
from ivgr.core.printable import markdown_table
from ivgr.tools.study.significance import Estimate, estimate, holm, sign_flip_p
from ivgr.tools.study.variants import ARMS, LOCALIZATION, MEASURES, PAIRS


@dataclass(frozen=True)
class Outcome:
    """A finished run: its seed (None for the cold start), minutes of training, figures by name, None
    where a probe found too little to measure."""

    arm: str
    seed: int | None
    minutes: float
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Difference:
    """arm less against, seed by seed, in one measure: the differences in order of their seeds,
    their estimate, p of the exact test, and that adjusted for the tests it is one of (None for
    what was not declared a test)."""

    arm: str
    against: str
    measure: str
    seeds: list[int]
    values: list[float]
    estimate: Estimate
    p: float
    adjusted: float | None = None


Estimates = dict[str, dict[str, Estimate]]


def estimate_arms(outcomes: Sequence[Outcome]) -> Estimates:
    """Returns the estimates by arm and measure, "minutes" among them."""
    return {
        name: {measure: estimate(known(measure, own)) for measure in MEASURES}
        | {"minutes": estimate([one.minutes for one in own])}
        for name in ARMS
        if (own := [one for one in outcomes if one.arm == name])
    }


def known(measure: str, outcomes: Sequence[Outcome]) -> list[float]:
    """A measure of those that have it."""
    return [value for one in outcomes if (value := one.figures[measure]) is not None]


def compare_arms(outcomes: Sequence[Outcome]) -> list[Difference]:
    """Every declared pair in every measure, on the seeds where both have it; Holm's adjustment for
    the measures of localization of the first pair, which alone were declared as tests."""
    found = {
        (one.arm, measure, one.seed): value
        for one in outcomes
        for measure in MEASURES
        if (value := one.figures[measure]) is not None
    }
    compared = [_compare(found, *pair, measure) for pair in PAIRS for measure in MEASURES]
    differences = [difference for difference in compared if difference.seeds]
    tested = [d for d in differences if (d.arm, d.against) == PAIRS[0] and d.measure in LOCALIZATION]
    adjusted = dict(zip((d.measure for d in tested), holm([d.p for d in tested]), strict=True))
    return [replace(d, adjusted=adjusted[d.measure]) if d in tested else d for d in differences]


def _compare(found: dict, arm: str, against: str, measure: str) -> Difference:
    of_arm, of_other = (
        {seed: value for (name, its, seed), value in found.items() if (name, its) == (one, measure)}
        for one in (arm, against)
    )
    seeds = sorted(of_arm.keys() & of_other.keys())
    values = [of_arm[seed] - of_other[seed] for seed in seeds]
    return Difference(arm, against, measure, seeds, values, estimate(values), sign_flip_p(values))


def write_results(
    folder: Path, settings: dict, outcomes: Sequence[Outcome], arms: Estimates, differences: list[Difference]
) -> str:
    """Writes results.json and results.md; returns the latter."""
    results = {
        "settings": settings,
        "environment": environment(),
        "declared": {"pair": PAIRS[0], "measures": LOCALIZATION},
        "runs": [asdict(one) for one in outcomes],
        "arms": {name: {m: asdict(e) for m, e in own.items()} for name, own in arms.items()},
        "differences": [asdict(difference) for difference in differences],
    }
    write_json(folder / "results.json", _without_nan(results))
    text = f"{markdown_table(arm_lines(arms))}\n{markdown_table(difference_lines(differences))}"
    write_atomically(folder / "results.md", text.encode())
    return text


def arm_lines(arms: Estimates) -> list[list[str]]:
    """Returns one line per arm: mean and 95 % interval over seeds of every measure."""
    header = ["arm", "seeds", *MEASURES.values(), "minutes"]
    return [header] + [
        [
            ARMS[name].title,
            str(own["minutes"].count) if ARMS[name].trained else "",
            *(_say(own[measure]) for measure in MEASURES),
            f"{own['minutes'].mean:.1f}" if ARMS[name].trained else "",
        ]
        for name, own in arms.items()
    ]


def difference_lines(differences: Sequence[Difference]) -> list[list[str]]:
    """Returns one line per pair and measure; tested differences are adjusted, all others are descriptive."""
    header = ["difference", "measure", "seeds", "mean [95 % interval]", "p, exact", "p, Holm"]
    return [header] + [
        [
            f"{ARMS[d.arm].title} − {ARMS[d.against].title}",
            MEASURES[d.measure],
            str(d.estimate.count),
            _say(d.estimate, "+"),
            f"{d.p:.4f}",
            "" if d.adjusted is None else f"{d.adjusted:.4f}",
        ]
        for d in differences
    ]


def _say(found: Estimate, sign: str = "") -> str:
    if not found.count:
        return "–"
    text = f"{found.mean:{sign}.3f}"
    return text if math.isnan(found.low) else f"{text} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value
