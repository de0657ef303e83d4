"""Runs of `ivgr fit` on several processes of this machine, as torchrun would start them."""

import gzip
import math
import os
import socket
from multiprocessing import get_context
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivgr.cli.main import main
from ivgr.core.prompts import STREAMS
from ivgr.core.sample import Sample
from ivgr.data.shards import write_shards
from ivgr.toy.world import World, draw_samples

CONFIG = Path(__file__).parents[2] / "configs" / "tiny.yaml"
ITERATIONS = 5
SETTINGS = {
    "model.iterations": ITERATIONS,
    "model.update.mini_batches": 2,
    "model.engine.sampling.max_new_tokens": 60,
    "model.update.optimizer.lr": 2e-5,
    "data": "ivgr.data.datamodule.ShardDataModule",
    "data.prompts": 8,
    "data.paired_ratio": 0.5,
    "data.val_queries": 2,
    "trainer.accelerator": "cpu",
    "checkpoint_every": 2 * ITERATIONS,
}


def write_world(folder: Path) -> dict[str, Path]:
    """Shards of questions about pictures (paired) and about nothing (single, text only)."""
    paired = [sample for sample in draw_samples(World("train", 40, seed=3)) if sample.kind == "paired"]
    texts = [Sample(f"sum-{i}", f"What is {i} + {i}?", str(2 * i), "single", "math") for i in range(30)]
    mixed = [sample for pair in zip(paired, texts, strict=False) for sample in pair]
    write_shards(folder / "train", "train", mixed, 12)
    write_shards(folder / "val", "val", paired[:4], 4)
    return {"data.train": folder / "train", "data.val": folder / "val"}


def start(ranks: int, root: Path, settings: dict, *words: str, config: Path = CONFIG) -> list:
    """The processes of a run in `root`; each writes what it says to root/RANK.log. Another config
    than CONFIG has only `settings`."""
    root.mkdir(exist_ok=True)
    options = (SETTINGS if config == CONFIG else {}) | settings
    options |= {"trainer.devices": ranks, "trainer.default_root_dir": root}
    command = ["fit", "--config", str(config)]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    context = get_context("forkserver")
    context.set_forkserver_preload(["ivgr.cli.main", "ivgr.trainer.rl_module", "support.launch"])
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    processes = [
        context.Process(target=_run, args=(rank, root, environment if ranks > 1 else {}, [*command, *words]))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def _run(rank: int, root: Path, environment: dict, command: list[str]) -> None:
    log = os.open(root / f"{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if environment else {})
    main(command)


def finish(processes: list) -> list[int | None]:
    """Their exit codes."""
    for process in processes:
        process.join(300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def fit(ranks: int, root: Path, settings: dict, *words: str, config: Path = CONFIG) -> Path:
    """A whole run; its folder."""
    codes = finish(start(ranks, root, settings, *words, config=config))
    assert codes == [0] * ranks, "\n".join(said(root, rank)[-3000:] for rank in range(ranks))
    return root


def said(root: Path, rank: int) -> str:
    """What a rank has written to the terminal."""
    return (root / f"{rank}.log").read_text()


def rollouts(root: Path) -> list[bytes]:
    """What each iteration has recorded."""
    return [gzip.decompress(path.read_bytes()) for path in sorted((root / "rollouts").glob("*.gz"))]


def scalars(root: Path, name: str) -> list[float]:
    """A figure of all iterations, TAG or STREAM/TAG."""
    stream, _, tag = name.partition("/")
    folder, tag = (root / stream, tag) if stream in STREAMS else (root, name)
    events = EventAccumulator(str(folder)).Reload()
    return [event.value for event in events.Scalars(tag)]


def same_figures(found: list[float], expected: list[float], name: str) -> None:
    """Held to what log-probs that are off by δ explain: the k3 of small log-ratios x, about x²/2, is off
    by E|1 - e^(-x)|·δ, about √(2·k3)·δ; the loss by E|advantage|·δ, at most δ; others by rounding."""
    error = 2e-6
    for one, other in zip(found, expected, strict=True):
        explained = {"rollout/kl": math.sqrt(2 * abs(other)) * error, "update/loss": error}.get(name, 0.0)
        assert abs(one - other) <= max(explained, 1e-5 * abs(other), 1e-8), (name, one, other)
