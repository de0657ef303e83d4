"""No setting of any command can be given a value that is answered by a traceback, or run with though it
makes no sense: what is no value is refused in one line that names it. The settings are found, not listed
(see `sweep`)."""

import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import mkdtemp

import pytest

from ivgr.cli.main import main
from support.checkpoints import fit_small
from support.samples import jpeg
from support.sweep import (
    CLASSES,
    CONFIGS,
    NUMBERS,
    PATHS,
    Found,
    Outcome,
    Setting,
    Sweep,
    allows,
    members,
    no_work,
    outcome_of,
    parsed_only,
    watched,
    words_of,
)

# Classes that the commands make themselves, of what a config says elsewhere.
RUN = "is made by the run itself, for every config"
REHEARSAL = "is made by ivgr rehearse"
INTERNAL = {
    "ivgr.callbacks.metrics_logger.MetricsLogger": RUN,
    "ivgr.callbacks.metrics_logger.ColdStartMetrics": RUN,
    "ivgr.callbacks.subset_validation.SubsetValidation": "is made of the settings that begin with held_out_",
    "ivgr.callbacks.tensorboard.Logger": RUN,
    "ivgr.callbacks.validation_summary.ValidationSummary": RUN,
    "ivgr.callbacks.checkpoints.Checkpoints": "is made of the settings that begin with checkpoint_",
    "ivgr.callbacks.validation_summary.ColdStartSummary": RUN,
    "ivgr.distributed.peers.Peers": RUN,
    "ivgr.callbacks.ending.Ending": RUN,
    "ivgr.callbacks.hparams.Hyperparameters": RUN,
    "ivgr.callbacks.preemption.Preemption": RUN,
    "ivgr.callbacks.progress.IterationBar": RUN,
    "ivgr.callbacks.run_metadata.RunRecord": RUN,
    "ivgr.callbacks.rollout_log.RolloutRecord": RUN,
    "ivgr.callbacks.save_on_error.Rescue": RUN,
    "ivgr.trainer.base_module.PolicyModule": "is the base of IVGR and SFT",
    "ivgr.rollout.engine_timeout.TimeoutEngine": "is made of model.guard.engine_timeout",
    "ivgr.rollout.tensor_parallel_engine.TensorParallelEngine": "is made of the strategy's own setting",
    "ivgr.tools.rehearse.rehearsal.Watch": REHEARSAL,
    "ivgr.tools.rehearse.rehearsal.OneOfMany": REHEARSAL,
    "ivgr.tools.rehearse.rehearsal.RehearsalData": REHEARSAL,
    "ivgr.tools.rehearse.rehearsal.ColdStartData": REHEARSAL,
    "ivgr.tools.rehearse.rollout_phase.RehearsedEngine": REHEARSAL,
    "ivgr.judge.judge_timeout.TimeoutJudge": "is made of model.guard.judge_timeout",
}
# What is refused or not according to the machine.
MACHINE = {"trainer.devices": "there are no other devices than this machine's"}
CURRICULUM = {"lessons": [{"steps": 1, "fewest": 1, "most": 1, "describe": 4}], "val_count": 2}
# What a command reads: without it there is nothing to do. What else is text it takes as it is, or writes.
READ = {
    ("archive", "checkpoint"), ("analyse", "folder"), ("compare", "run_a"), ("compare", "run_b"),
    ("distill", "run"), ("distill", "shards"), ("evaluate", "data"), ("evaluate", "model"),
    ("export", "ckpt"), ("filter", "shards"), ("filter", "policy"), ("inspect", "shards"),
    ("pack", "source"), ("plan", "config"), ("score", "predictions"), ("score", "data"),
    ("study", "base"), ("fit", "ckpt_path"), ("ask", "model"), ("validate", "ckpt_path"),
    ("fit", "model.policy"), ("validate", "model.policy"), ("fit", "data.train"), ("fit", "data.val"),
    ("validate", "data.val"), ("fit", "data.train.path"), ("fit", "model.policy.path"),
    ("validate", "model.policy.path"), ("fit", "trainer.callbacks.data"),
}  # fmt: skip
# What else a command looks at: what it writes, which may be there already, and what it has no use for.
LOOKED_FOR = {
    ("synth", "folder"), ("scratch", "folder"), ("evaluate", "out"), ("filter", "dst"), ("export", "dst"),
    ("fit", "trainer.default_root_dir"), ("validate", "trainer.default_root_dir"), ("validate", "data.train"),
    ("fit", "model.judge.cache"), ("validate", "model.judge.cache"), ("fit", "model.export"),
    ("filter", "judge.cache"), ("evaluate", "judge.cache"), ("fit", "trainer.callbacks.judge.cache"),
    ("validate", "trainer.callbacks.judge.cache"), ("bench", "json"),
}  # fmt: skip
PARTS = 4


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> dict:
    """Of every setting that a command cannot do without."""
    root = tmp_path_factory.mktemp("valid")
    (root / "image.jpg").write_bytes(jpeg())
    (root / "rows.json").write_text("[]")
    (root / "predictions.jsonl").write_text('{"index": 0, "prediction": "A"}\n')
    return {
        "root": "run", "words": [str(root / "image.jpg"), "What?"], "folder": "out", "target": "out",
        "dst": "out", "source": str(root / "rows.json"), "shards": str(root / "world"),
        "base_url": "http://127.0.0.1:9/v1", "model": "none", "path": str(root / "model"),
        "run": str(root / "run"), "run_a": str(root / "eval/tiny/text"),
        "run_b": str(root / "eval/tiny/grounded"), "analyse.folder": str(root / "eval/tiny"),
        "family": "qwen2_vl", "size": "tiny", "config": str(CONFIGS / "qwen2vl_7b.yaml"),
        "checkpoint": str(root / "run/checkpoints/last.ckpt"),
        "ckpt": str(root / "run/checkpoints/last.ckpt"),
        "evaluate.benchmark": ["vstar"], "benchmark": ["vstar"], "data": str(root / "vstar.tsv"),
        "evaluate.data": str(root / "vstar.tsv"), "score.benchmark": "vstar",
        "predictions": str(root / "predictions.jsonl"),
        "train": str(root / "world"), "val": str(root / "world"), "steps": 1, "fewest": 1, "most": 2,
        "SFT.policy": "tiny",
        "with SFT": {"data": {"class_path": "ivgr.toy.curriculum.Curriculum", "init_args": CURRICULUM}},
        "with Curriculum": {"model": {"class_path": "ivgr.trainer.sft_module.SFT"}},
        "with ColdStart": {"model": {"class_path": "ivgr.trainer.sft_module.SFT"}},
        "lessons": [{"steps": 1, "fewest": 1, "most": 1, "describe": 4}], "made": str(root),
    }  # fmt: skip


@pytest.fixture(scope="module")
def files(valid) -> dict:
    """The same, and what `valid` names lies there."""
    root = Path(valid["made"])
    main(["synth", valid["shards"], "--count", "20"])
    main(["synth", str(root), "--tsv", "--count", "4"])
    fit_small("tiny", root / "run")
    main(["export", valid["ckpt"], valid["path"], "--policy", "tiny"])
    for mode in ("text", "grounded"):
        folder = root / "eval/tiny" / mode
        folder.mkdir(parents=True)
        (folder / "vstar.jsonl").write_text("")
    return valid


@pytest.fixture(scope="module")
def found(valid) -> Found:
    return Sweep(valid, INTERNAL).walk()


def sampled(cases: list, whole: bool, every: int) -> list:
    """All; or every second setting with one value, the values taking turns."""
    if whole:
        return cases
    return [
        case for i, case in enumerate(cases) if i // every % 2 == 0 and i // every // 2 % every == i % every
    ]


def halves(settings: list[Setting], whole: bool) -> list[Setting]:
    """What `ivgr fit` and `ivgr validate` both have is tried in turn with one and the other."""
    if whole:
        return settings
    seen: dict[str, int] = {}
    shared = {str(s).split(" ", 1)[1] for s in settings if s.words == ("validate",)}
    kept = []
    for setting in settings:
        name = str(setting).partition(" ")[2]
        if setting.words[0] in ("fit", "validate") and name in shared:
            turn = seen.setdefault(name, len(seen)) % 2
            if setting.words[0] != ("fit", "validate")[turn]:
                continue
        kept.append(setting)
    return kept


def complaint(outcome: Outcome, case: str) -> str | None:
    """What is wrong with how a slip was answered, if it was not refused."""
    if outcome.code is None:
        return f"{case}: traceback: {' | '.join(outcome.line.splitlines()[-4:])}"
    if outcome.accepted:
        return f"{case}: taken"
    return None if outcome.refused else f"{case}: exit code {outcome.code}: {outcome.line!r}"


def try_numbers(settings: list[Setting], whole: bool, folder: Path) -> tuple[int, list[str], list[str]]:
    """How many cases there were, what was wrong, and which commands lack something here."""
    cases = [(setting, kind) for setting in settings for kind in NUMBERS]
    wrong, lacking = [], {}
    cases = sampled(cases, whole, len(NUMBERS))
    for setting, kind in cases:
        value = NUMBERS[kind]
        outcome = outcome_of(words_of(setting.words, setting.given(value), folder))
        case = f"{setting} = {value}"
        if not allows(setting.hint, value):
            wrong += filter(None, [complaint(outcome, case)])
            if outcome.refused and setting.name.split(".")[-1] not in outcome.line:
                wrong.append(f"{case}: not named: {outcome.line!r}")
        elif not outcome.accepted:
            plain = outcome_of(words_of(setting.words, setting.settings, folder))
            if outcome.refused and setting.name in MACHINE:
                lacking[str(setting)] = MACHINE[setting.name]
            elif plain.refused:
                lacking[str(setting)] = plain.line.strip()
            else:
                wrong.append(f"{case}: refused: {outcome.line}")
    return len(cases), wrong, [f"{name}: {line}" for name, line in lacking.items()]


def try_classes(settings: list[Setting], whole: bool, folder: Path) -> tuple[int, list[str]]:
    cases = [(setting, kind) for setting in settings for kind in CLASSES]
    wrong = []
    cases = sampled(cases, whole, len(CLASSES))
    for setting, kind in cases:
        given = setting.given({"class_path": CLASSES[kind]})
        outcome = outcome_of(words_of(setting.words, given, folder))
        wrong += filter(None, [complaint(outcome, f"{setting} = {CLASSES[kind]}")])
    return len(cases), wrong


def try_paths(texts: list[tuple[Setting, Sequence[str]]], root: Path) -> tuple[int, int, list[str]]:
    """How many of the settings are paths, how many cases there were, and what was wrong. What a command
    looks at when it is given one, or is known to read, is a path, and is tried with each of the kinds
    beside it; any other text with the first."""
    paths, count, wrong = 0, 0, []
    for setting, kinds in texts:
        for kind in kinds:
            looks, complaints = try_path(setting, kind, Path(mkdtemp(dir=root)))
            count, wrong = count + 1, wrong + complaints
            if not (looks or is_read(setting) or Path in members(setting.hint)):
                break
        else:
            paths += 1
    return paths, count, wrong


def try_path(setting: Setting, kind: str, folder: Path) -> tuple[bool, list[str]]:
    """Whether the command looks at the path, and what was wrong."""
    os.chdir(folder)
    path = make_path(kind, folder, setting)
    words = words_of(setting.words, setting.given(str(path)), folder)
    with watched(path, kind != "unreadable") as looks:
        outcome = outcome_of(words)
    case = f"{setting} = {kind}"
    if is_read(setting) or not outcome.accepted:
        return bool(looks), list(filter(None, [complaint(outcome, case)]))
    unknown = looks and place_of(setting) not in LOOKED_FOR
    return bool(looks), [f"{case}: taken, though looked at ({looks[0]})"] if unknown else []


def place_of(setting: Setting) -> tuple[str, str]:
    return setting.words[0], setting.name


def is_read(setting: Setting) -> bool:
    return place_of(setting) in READ


def make_path(kind: str, folder: Path, setting: Setting) -> Path:
    """A path of this kind; what cannot be read is what would be right here otherwise."""
    path = folder / "given"
    if kind == "folder":
        path.mkdir()
    elif kind == "another kind":
        path.write_bytes(jpeg())
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "unreadable":
        place = setting.settings
        for key in setting.keys:
            place = place.get(key) if isinstance(place, dict) else None
        if isinstance(place, str) and Path(place).exists():
            return Path(place)
        path.write_text("{}")
    return path


def check_paths(texts: list[tuple[Setting, Sequence[str]]], root: Path, show) -> None:
    with no_work():
        paths, count, wrong = try_paths(texts, root)
    tracebacks = sum("traceback" in line for line in wrong)
    show(f"{len(texts)} texts, {paths} of them paths, {count} cases, {tracebacks} tracebacks")
    assert not wrong, "\n".join(wrong)


def check_settings(found: Found, whole: bool, folder: Path, show) -> None:
    with parsed_only():
        numbers, wrong, lacking = try_numbers(halves(found.numbers, whole), whole, folder)
        classes, more = try_classes(halves(found.classes, whole), whole, folder)
    wrong += more
    show(
        f"{len(found.parsers)} parsers, {len(found.numbers)} numeric settings, "
        f"{len(found.classes)} places for a class, {len(found.named)} classes, {numbers + classes} cases, "
        f"{sum('traceback' in line for line in wrong)} tracebacks"
    )
    for name, reason in found.skipped.items():
        show(f"not tried: {name} {reason}")
    for line in lacking:
        show(f"not here: {line}")
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def show(capsys):
    def show(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return show


def test_every_number_has_bounds(found):
    assert found.unbounded == []
    assert len(found.parsers) >= 22 and len(found.numbers) >= 300


def test_every_number_and_class_once(found, tmp_path, monkeypatch, show):
    monkeypatch.chdir(tmp_path)
    check_settings(found, False, tmp_path, show)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_number_and_class(found, tmp_path, monkeypatch, show):
    monkeypatch.chdir(tmp_path)
    check_settings(found, True, tmp_path, show)


def test_every_path_once(files, found, tmp_path, monkeypatch, show):
    """Of what is read, and a few of the rest; the kinds take turns."""
    monkeypatch.chdir(tmp_path)
    settings = [s for i, s in enumerate(halves(found.texts, False)) if is_read(s) or i % 20 == 0]
    check_paths([(s, [PATHS[i % len(PATHS)]]) for i, s in enumerate(settings)], tmp_path, show)


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_every_path(part, files, found, tmp_path, monkeypatch, show):
    monkeypatch.chdir(tmp_path)
    check_paths([(s, PATHS) for s in found.texts[part::PARTS]], tmp_path, show)


@pytest.mark.slow
def test_twenty_as_real_commands(files, found, tmp_path, monkeypatch):
    """Seven numbers, seven paths and six classes, each kind of slip in its turn."""
    monkeypatch.chdir(tmp_path)
    numbers = [
        (s, value) for s, value in product(found.numbers, NUMBERS.values()) if not allows(s.hint, value)
    ]
    classes = [(s, {"class_path": name}) for s, name in product(found.classes, CLASSES.values())]
    paths = [(s, kind) for s, kind in product(found.texts, PATHS) if is_read(s) and kind != "unreadable"]
    given = [(s, str(make_path(kind, Path(mkdtemp(dir=tmp_path)), s))) for s, kind in spread(paths, 7)]
    chosen = [*spread(numbers, 7), *given, *spread(classes, 6)]
    for setting, value in chosen:
        words = words_of(setting.words, setting.given(value), tmp_path)
        ended = subprocess.run([sys.executable, "-m", "ivgr", *words], capture_output=True, text=True)
        assert complaint(Outcome(ended.returncode, ended.stderr), f"{setting} = {value}") is None
    assert len(chosen) == 20


def spread(cases: list, count: int) -> list:
    """So many of them, over all of them."""
    return [cases[i * len(cases) // count] for i in range(count)]
