"""What costs few bytes and unpacks to gigabytes, at its real size: a tool's own process grows by less than
2 GiB and works for less than a minute."""

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ivgr.toy.world import World, write_world
from support.hostile import GOOD, usable, write_tar
from support.samples import encode_image, jpeg

pytestmark = pytest.mark.slow
GIB = 2**30
SIDE = 11_585  # of a picture just within what is opened
TINY = str(Path(__file__).parents[2] / "configs" / "tiny.yaml")
CHILD = """
import json, resource, sys, time
from ivgr.cli.main import main
import torch, transformers, pyarrow.parquet, ivgr.models.pretrained
ivgr.models.pretrained.Pretrained("tiny").load()

def resident(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

before, begun = resident("VmRSS"), time.process_time()
try:
    main(json.loads(sys.argv[1]))
    code = 0
except SystemExit as stop:
    code = stop.code
print(json.dumps([code, resident("VmHWM") - before, time.process_time() - begun]))
"""


def call(*words) -> tuple[int, str]:
    """Exit code and output of a tool, which is held to its bounds."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(list(map(str, words)))],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    code, grown, seconds = json.loads(done.stdout.splitlines()[-1])
    print(f"{words[0]}: exit code {code}, {grown / GIB:.2f} GiB, {seconds:.1f} s")
    assert grown < 2 * GIB and seconds < 60
    return code, done.stdout + done.stderr


def packed_zeros(path: Path, names: list[str], size: int) -> Path:
    """A tar.gz of files of zeros, `size` bytes each, written by repeating what 2^26 of them pack to."""
    zeros = gzip.compress(bytes(2**26))
    with path.open("wb") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            file.write(gzip.compress(info.tobuf()) + zeros * (size // 2**26))
        file.write(gzip.compress(bytes(1024)))
    return path


def oversized_header(path: Path) -> Path:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 * GIB
    zeros = gzip.compress(bytes(2**26))
    path.write_bytes(gzip.compress(info.tobuf(tarfile.USTAR_FORMAT)) + zeros * 48)
    return path


@pytest.fixture(scope="module")
def picture() -> bytes:
    """Just within what is opened, in few bytes."""
    return encode_image(Image.new("L", (SIDE, SIDE), 200), "PNG")


def sample_of(path: Path, images: list[bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            named = {f"{n}.png": image for n, image in enumerate(images)}
            for suffix, data in (
                {"json": json.dumps({"id": f"big {number}", **GOOD}).encode()} | named
            ).items():
                info = tarfile.TarInfo(f"{number}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_training_goes_on(tmp_path, picture):
    """Among good samples: zeros, a header of 3 GB, eight pictures just within what is opened."""
    train = tmp_path / "train"
    train.mkdir()
    write_tar(train / "train-000000.tar", [usable()] * 40)
    packed_zeros(train / "train-000001.tar", [f"{n}.jpg" for n in range(32)], 192 * 2**20)
    packed_zeros(train / "train-000002.tar", ["0.json"], 4 * GIB)
    oversized_header(train / "train-000003.tar")
    sample_of(train / "train-000004.tar", [picture] * 8)
    val = tmp_path / "val"
    write_world(val, World("val", 12))
    code, _ = call(
        "fit", "--config", TINY, "--trainer.default_root_dir", tmp_path / "run",
        "--data", "ivgr.data.datamodule.ShardDataModule", "--data.train", train, "--data.val", val,
        "--data.paired_ratio", "1", "--data.val_queries", "4", "--data.max_rejected", "1",
        "--data.prompts", "96", "--model.iterations", "1", "--model.encoding.max_prompt_tokens", "300",
        "--model.engine.sampling.max_new_tokens", "2", "--model.engine.sampling.group_size", "2",
    )  # fmt: skip
    rows = list(map(json.loads, (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()))
    assert code == 0 and {row["reason"] for row in rows} == {
        "shard: unpacks too far", "shard: oversized file", "shard: not a tar", "image: too large",
    }  # fmt: skip


def test_pack_refuses_an_archive_of_zeros(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "q?", "answer": "a", "image": "0.jpg"}))
    archive = packed_zeros(tmp_path / "a.tar.gz", [f"{n}.jpg" for n in range(16)], 2**28)
    code, said = call("pack", tmp_path / "rows.jsonl", tmp_path / "out", "--image_dir", archive)
    assert code == 2 and "compressed bytes hold more" in said


def test_pack_counts_a_row_of_large_pictures(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture)
    row = {"question": "q?", "answer": "a", "kind": "single"}
    rows = [row | {"id": n, "images": ["a.png"] * 8} for n in range(4)]
    rows += [row | {"id": f"one {n}", "image": "a.png"} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    code, said = call("pack", tmp_path / "rows.jsonl", tmp_path / "out", "--workers", "2")
    assert code == 1 and "4 rows rejected" in said


@pytest.mark.parametrize("tool", ["pack", "evaluate"])
def test_a_parquet_that_unpacks_to_eight_gigabytes(tmp_path, tool):
    part = pa.array(["x" * 2**26] * 4)
    columns = {"question": pa.chunked_array([part] * 32), "answer": ["A"] * 128, "image": [jpeg()] * 128}
    path, more = tmp_path / "vstar.parquet", {"A": ["a"] * 128, "B": ["b"] * 128}
    pq.write_table(pa.table(columns | more), path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 2**24
    words = ["pack", path, tmp_path / "out"] if tool == "pack" else ["evaluate", "--benchmark", "vstar"]
    more = ["--data", path, "--out", tmp_path / "out"] if tool == "evaluate" else []
    code, said = call(*words, *more)
    assert code == 2 and "unpack to" in said


def test_a_parquet_that_repeats_a_megabyte_eight_thousand_times(tmp_path):
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 8192, pa.int32()), ["x" * 2**20])
    table = pa.table({"question": text, "answer": ["a"] * 8192, "image": ["a.jpg"] * 8192})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert (tmp_path / "rows.parquet").stat().st_size < 2**22
    code, said = call("pack", tmp_path / "rows.parquet", tmp_path / "out")
    assert code == 1 and "8192 rows rejected" in said


def test_ask_about_large_pictures(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(picture)
    image, words = tmp_path / "a.png", ["What?", "--max_new_tokens", "2"]
    code, said = call("ask", *[image] * 8, *words)
    assert code == 2 and "pixels together" in said
    assert call("ask", image, *words, "--max_pixels", "100000")[0] == 0
