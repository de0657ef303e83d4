"""`ivgr study`: train, examine, compare.

It leaves, under its folder: study.json (settings), world/, a folder for each run with its policy,
results.json, results.md, results.png and results.pdf.
"""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ivgr.core.errors import UserError, require_package
from ivgr.core.readers import read_json
from ivgr.core.settings import PositiveInt, checked
from ivgr.launch.config import read_config
from ivgr.rollout.sampling import SamplingConfig
from ivgr.tools.study.policy_report import ReportSettings
from ivgr.tools.study.process_pool import Pool, Task
from ivgr.tools.study.significance import MOST
from ivgr.tools.study.study_figure import draw
from ivgr.tools.study.study_report import Outcome, compare_arms, estimate_arms, write_results
from ivgr.tools.study.study_runs import (
    AGAIN,
    EXAMINED,
    POLICY,
    TRAINED,
    Run,
    Training,
    check_same_settings,
    plan_runs,
)
from ivgr.tools.study.variants import ARMS, MEASURES


@checked("study: --")
def study(
    folder: Path = Path("runs/study"),
    base: Path = Path("configs/tiny.yaml"),
    arms: list[str] = list(ARMS),
    seeds: PositiveInt = 10,
    others: PositiveInt = 3,
    iterations: PositiveInt = 80,
    scenes: PositiveInt = 1300,
    questions: PositiveInt = 512,
    probed: PositiveInt = 128,
    parallel: PositiveInt = 2,
    threads: PositiveInt = 1,
    anew: bool = False,
) -> None:
    """Repeat the paper's ablation on the tiny world: what does each part of the method do?

    Every arm is trained with the same seeds, scenes and cold start, and then examined on
    held-out questions. Kill it whenever you like: the same command goes on; with more seeds or arms
    it adds runs.

    Args:
        folder: Where everything goes.
        base: The config of `ivgr fit` that all runs start from; of the tiny world.
        arms: Which to compare: cold textual grounded both consistency archive.
        seeds: Paired seeds with and without the consistency reward, which are tested.
        others: Seeds of the other arms.
        iterations: Of each run.
        scenes: Drawn for training; by default the arms of two streams see each paired question 2.2 times, as
            in the paper, those of one stream twice as often.
        questions: Held-out paired questions that each policy is asked.
        probed: How many of these the probes read.
        parallel: Runs at a time.
        threads: Of each run.
        anew: Examine again what was examined before.
    """
    check(arms, seeds, others)
    if probed > questions:
        raise UserError(f"study: --probed is {probed}, must be at most --questions, which is {questions}")
    training = Training(base, iterations, scenes, questions, threads)
    settings = training.saved()
    check_same_settings(folder, settings)
    training.draw_world(folder / "world")
    asked = plan_examination(training, folder / "world", probed)
    runs, pool = plan_runs(folder, arms, seeds, others), Pool(parallel, threads)
    train_all(runs, training, folder / "world", pool)
    examinations = {
        run: replace(asked, policy=str(run.folder / POLICY)) if ARMS[run.arm].trained else asked
        for run in runs
    }
    examine_all(examinations, pool, anew)
    outcomes = [read_outcome(run) for run in runs]
    estimates, differences = estimate_arms(outcomes), compare_arms(outcomes)
    print(write_results(folder, settings, outcomes, estimates, differences))
    draw(outcomes, estimates, differences, folder / "results")
    print(f"{folder / 'results.json'}, .md, .png, .pdf")


def check(arms: list[str], seeds: int, others: int) -> None:
    """UserError for settings that no study can have, before hours are spent."""
    if not arms or not set(arms) <= ARMS.keys():
        raise UserError(f"study --arms: {' '.join(arms)}; they must be among {', '.join(ARMS)}")
    if not 1 <= others <= seeds <= MOST:
        raise UserError(f"study: 1 ≤ --others ≤ --seeds ≤ {MOST}, they are {others} and {seeds}")
    require_package("study", "matplotlib", "evaluate")


def train_all(runs: list[Run], training: Training, world: Path, pool: Pool) -> None:
    tasks = [
        Task(
            run.name,
            {
                "do": "train",
                "folder": str(run.folder),
                "iterations": training.iterations,
                "words": training.words(run, world),
            },
            run.folder / "train.log",
        )
        for run in runs
        if ARMS[run.arm].trained and not (run.folder / TRAINED).exists()
    ]
    pool.run(tasks, Progress("trained", len(tasks)))


def plan_examination(training: Training, world: Path, probed: int) -> ReportSettings:
    """Returns the settings of the report on the policy that all runs start from, with the config's prompts
    and length of responses."""
    model = read_config(training.base).get("model", {}).get("init_args", {})
    return ReportSettings(
        policy=name_policy(model),
        shards=str(world / "val"),
        questions=training.questions,
        probed=probed,
        max_new_tokens=longest_response(model),
        prompts=model.get("encoding", {}).get("prompts", {}),
    )


def longest_response(model: dict) -> int:
    """Returns the longest response of the config's engine, in tokens."""
    sampling = model.get("engine", {}).get("init_args", {}).get("sampling", {})
    return sampling.get("max_new_tokens", SamplingConfig().max_new_tokens)


def name_policy(model: dict) -> str:
    """Returns the path from which the config's policy is loaded; UserError if it has none."""
    policy = model.get("policy", "tiny")
    path = policy if isinstance(policy, str) else policy.get("init_args", {}).get("path")
    if path is None:
        raise UserError("study --base: model.policy must be a path or have init_args.path")
    return str(path)


def examine_all(examinations: dict[Run, ReportSettings], pool: Pool, anew: bool) -> None:
    """Examines the policies that were not examined with these settings before."""
    tasks = [
        Task(
            run.name,
            {"do": "examine", "folder": str(run.folder), "examination": asdict(wanted)},
            run.folder / "examine.log",
        )
        for run, wanted in examinations.items()
        if anew or not was_examined(run, wanted)
    ]
    pool.run(tasks, Progress("examined", len(tasks)))


def was_examined(run: Run, wanted: ReportSettings) -> bool:
    """Whether the policy was examined with these settings and for every measure of today."""
    path = run.folder / EXAMINED
    if not path.exists():
        return False

    def is_wanted(found: dict) -> bool:
        return found["examination"] == asdict(wanted) and MEASURES.keys() <= found["figures"].keys()

    return read_json(path, AGAIN, is_wanted)


def read_outcome(run: Run) -> Outcome:
    trained = run.folder / TRAINED
    seconds = read_json(trained, AGAIN, lambda found: found["seconds"] / 1) if trained.exists() else 0.0
    figures = read_json(run.folder / EXAMINED, AGAIN, lambda found: found["figures"])
    return Outcome(run.arm, run.seed, seconds / 60, figures)


@dataclass
class Progress:
    """Says what is finished, of `total`, and how long the rest may take."""

    done: str
    total: int
    count: int = 0

    def __post_init__(self) -> None:
        self.since = time.perf_counter()

    def __call__(self, task: Task) -> None:
        self.count += 1
        left = (time.perf_counter() - self.since) / self.count * (self.total - self.count) / 60
        rest = f", about {left:.0f} min to go" if self.count < self.total else ""
        print(f"{self.done} {self.count} of {self.total}: {task.name}{rest}", flush=True)
