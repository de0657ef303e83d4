"""Do two commits do the same? `python tests/support/compare_commits.py OLD NEW`.

Both run, in this environment, `ivgr synth`, a short `ivgr fit`, `ivgr pack` of a parquet and `ivgr evaluate`
of a quiz. Prints what differs in what they leave, and exits with 1 if anything does. Of times nothing is
compared, of a checkpoint the weights, and of a run's record of its own settings nothing: names may change.
"""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.contents import contents, differences
from support.published import write_published

ROOT = Path(__file__).parents[2]
OWN_SETTINGS = ("run.json", "hparams.yaml", "events", "sweep.yaml")
COMMANDS = {
    "synth": "synth synth --count 40",
    "quiz": "synth quiz --tsv --count 12",
    "fit": "fit --config {tree}/configs/tiny.yaml --model.iterations 3 --trainer.default_root_dir fit",
    "pack": "pack {rows}/rows.parquet pack --per_shard 10 --workers 1",
    "evaluate": "evaluate --benchmark vstar --data quiz/vstar.tsv --model tiny --mode text --out evaluate",
}


def check_out(commit: str, folder: Path) -> Path:
    """The commit's files."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    if not (folder / "src/ivgr/kernels").exists():  # before it was a link, only an installation had it
        (folder / "src/ivgr/kernels").symlink_to("../../kernels")
    return folder


def run(tree: Path, rows: Path, folder: Path) -> dict[str, object]:
    """What the commands leave in `folder`, by path."""
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    for words in COMMANDS.values():
        command = [sys.executable, "-m", "ivgr", *words.format(tree=tree, rows=rows).split()]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    found = {path: value for path, value in contents(folder).items() if Path(path).name not in OWN_SETTINGS}
    for path in folder.rglob("*.ckpt"):
        found[str(path.relative_to(folder))] = weights(path)
    return found


def weights(path: Path) -> dict[str, bytes]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in state.items()}


def main(old: str, new: str) -> None:
    with TemporaryDirectory() as scratch:
        place = Path(scratch)
        write_published(place / "rows")
        left, right = (
            run(check_out(commit, place / f"{name}-tree"), place / "rows", place / name)
            for name, commit in (("old", old), ("new", new))
        )
    lines = differences(left, right)
    print(*lines, f"{len(left | right)} files and folders, {len(lines)} differences", sep="\n")
    raise SystemExit(bool(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
