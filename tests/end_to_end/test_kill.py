"""Every command, killed where it writes and given again, ends with what the unbroken run leaves."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from ivgr.cli.main import main
from ivgr.data.sft_encode import write_response
from ivgr.data.shards import write_shards
from ivgr.models.model_directory import write_directory
from ivgr.toy import world as write
from ivgr.toy.tiny_model import TinyScratch
from ivgr.toy.world import World, draw_samples
from support.kill import Moment, Subject, Trial
from support.samples import jpeg

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
FIT = {
    "checkpoint_every": 1,
    "model.iterations": 2,
    "model.engine.sampling.group_size": 2,
    "model.engine.sampling.max_new_tokens": 8,
    "data.prompts": 2,
    "data.train_count": 6,
    "data.val_count": 4,
    "data.val_queries": 2,
    "trainer.accelerator": "cpu",
}
SMALL = {"width": 32, "layers": 1, "vision_layers": 1, "heads": 2}
EVERY = (pytest.mark.slow, pytest.mark.exhaustive)
COMMANDS = ("synth", "pack", "distill", "filter", "evaluate", "fit")
# Where killed runs could not be ended once: of a world whose shards are not all there, of a run whose
# iterations are all done, and of one whose best checkpoint has no link yet.
WINDOWS = {
    "synth": ("half write out/train-000001.tar.part",),
    "fit": ("begun write summary.json.part", "after replace checkpoints/last.ckpt (3)"),
}
GOOD = {"format": 1.0, "accuracy": 1.0, "box": 1.0}


def short_world() -> None:
    """Three samples per shard, so that a small world has several."""
    write.PER_SHARD = 3


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """What the commands read: a policy, shards, rows with pictures, a benchmark, a run's rollouts."""
    folder = tmp_path_factory.mktemp("given")
    write_directory(*TinyScratch(**SMALL).load(), folder / "policy")
    samples = list(draw_samples(World("train", 8, seed=6)))
    write_shards(folder / "shards", "train", samples, 3)
    rows = [
        {"question": f"Number {number}?", "answer": "yes", "image": f"{number}.jpg"} for number in range(6)
    ]
    for number in range(5):
        (folder / f"{number}.jpg").write_bytes(jpeg((40 * number, 9, 9)))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    main(["synth", str(folder / "quiz"), "--split", "val", "--count", "5", "--seed", "5", "--tsv"])
    paired = [sample for sample in samples if sample.kind == "paired"]
    rollouts = "".join(
        json.dumps({
            "id": sample.id, "stream": "grounded", "frame": [1000, 1000], "terms": GOOD,
            "text": write_response(sample.reasoning["grounded"], sample.answer),
        }) + "\n"
        for sample in paired
    )  # fmt: skip
    (folder / "run" / "rollouts").mkdir(parents=True)
    (folder / "run" / "rollouts" / "000001.jsonl.gz").write_bytes(gzip.compress(rollouts.encode()))
    return folder


def subject_of(command: str, given: Path, root: Path) -> Subject:
    """The command on what is given, which writes into `root`."""
    shards, short = str(given / "shards"), ["--max_new_tokens", "8"]
    if command == "fit":
        options = FIT | {"trainer.default_root_dir": root, "model.policy": given / "policy"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words = ["fit", "--config", str(CONFIG), *words, "--ckpt_path", "auto"]
        return Subject(root, words, short_world, over="the run is complete")
    if command == "synth":
        return Subject(root, ["synth", "out", "--count", "7"], short_world)
    if command == "pack":
        words = ["pack", str(given / "rows.jsonl"), "out", "--per_shard", "2", "--workers", "1"]
        return Subject(root, words, ends=(0, 1))
    if command == "distill":
        return Subject(root, ["distill", str(given / "run"), shards, "out", "--ratio", "1:4"])
    if command == "filter":
        kept = ["--copies", "2", "--batch", "4", "--lowest", "0", "--highest", "1"]
        return Subject(root, ["filter", shards, "out", *kept, *short])
    words = ["evaluate", "--benchmark", "vstar", "--data", str(given / "quiz"), "--out", "out"]
    return Subject(root, [*words, "--openly", "--batch", "2", "--export", "tsv", *short])


def sampled(command: str, moments: list[Moment]) -> list[Moment]:
    """One moment of each kind of operation, at various stages of the run, and the windows."""
    kinds: dict[str, list[Moment]] = {}
    for moment in moments:
        kinds.setdefault(kind_of(moment), []).append(moment)
    chosen = [found[len(found) * 2 * (i + 1) // 7 % len(found)] for i, found in enumerate(kinds.values())]
    for window in WINDOWS.get(command, ()):
        found = [moment for moment in moments if str(moment) == window]
        assert found, f"{command} never comes to: {window}"
        chosen.append(found[-1])
    return list(dict.fromkeys(chosen))


def kind_of(moment: Moment) -> str:
    return moment.name.partition(" ")[0]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=EVERY)], ids=["some", "all"])
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.slow) if name == "fit" else name for name in COMMANDS]
)
def test_a_killed_command_given_again_ends_as_the_unbroken_one(command, whole, given, tmp_path):
    trial = Trial(subject_of(command, given, tmp_path / "root"))
    assert not trial.unknown, f"written past the watch: {trial.unknown}"
    every = trial.log.distinct()
    moments = every if whole else sampled(command, every)
    kinds = Counter(name.partition(" ")[0] for name, _ in trial.log.operations)
    print(f"{command}: {len(trial.log.operations)} operations {dict(kinds)}; ", end="")
    print(f"{len(moments)} of {len(every)} moments tried")
    assert trial.kill_at_all(moments) == {}
