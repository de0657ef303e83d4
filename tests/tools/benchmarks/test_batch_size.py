"""How `ivgr evaluate` loads a model and how many rows it asks together: by the files and the free memory."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivgr.cli.main import main
from ivgr.core import memory
from ivgr.core.memory import free_bytes
from ivgr.models.pretrained import Pretrained
from ivgr.models.registry import find_family
from ivgr.tools.benchmarks import batch_size as room
from ivgr.tools.benchmarks import evaluate as command
from ivgr.tools.benchmarks.batch_size import MOST, choose_batch, fit_rows, row_bytes
from ivgr.tools.plan.model_shape import read_shape
from support.benchmark_files import ABCD, ASK, BASE64, write_tsv

GB = 10**9


@given(st.integers(0, 10**13), st.integers(1, 10**11))
def test_the_largest_power_of_two_that_fits(free, row):
    rows = fit_rows(free, row)
    assert rows in (1, 2, 4, 8, 16, 32, 64)
    assert rows == 1 or rows * row <= 0.8 * free
    assert rows == MOST or 2 * rows * row > 0.8 * free


def test_a_row_at_7b_as_counted_by_hand():
    """28 layers of 4 key heads of 128; hidden 3584, feed 18944; tower 1280 and 3420; 152,064 words."""
    shape = read_shape(find_family("qwen2_5_vl").config("7b"))
    tokens, new, size = 4096, 1024, 2
    cache = 2 * 28 * 512 * size * (tokens + 2 * new)
    tower = 4 * tokens * 3 * (1280 + 3420)
    language = tokens * 3 * (3584 + 18944)
    by_hand = cache + size * max(tower, language) + 10 * tokens**2 + 152_064 * (size + 12)
    assert row_bytes(shape, tokens, new, size) == pytest.approx(by_hand, rel=0.01)
    # On a GPU of 80 GB, behind weights of 16.6 GB: not 64 at the processor's own 16,384 tokens.
    assert fit_rows(63 * GB, row_bytes(shape, 16384 + 512, new, size)) == 8
    assert fit_rows(63 * GB, row_bytes(shape, 1280 + 512, new, size)) == 64


def test_the_batch_follows_memory_mode_and_pixels(monkeypatch):
    model, processor = Pretrained("tiny").load()
    shape = read_shape(model.config)

    def batch(free, mode="text", limit=10**6):
        monkeypatch.setattr(room, "free_bytes", lambda device: free)
        return choose_batch(model, processor, mode, 100, limit)

    images = processor.image_processor
    most = images.size["longest_edge"] // (images.patch_size * images.merge_size) ** 2
    row = row_bytes(shape, most + 512, 100, 4)
    assert batch(row * 20) == 16 and batch(row * 19) == 8 and batch(0) == 1 and batch(10**15) == MOST
    assert batch(row * 20, "tool") < 16 and batch(row * 20, limit=300) > 16


def test_free_memory_is_that_of_the_container(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    5000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    cpu = torch.device("cpu")
    assert free_bytes(cpu) == 5000 * 1024
    for limit, free in (
        ("max", 5000 * 1024),
        ("3000000", 2_000_000),
        ("100", 0),
        ("9000000000", 5000 * 1024),
    ):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("1000000\n")
        assert free_bytes(cpu) == free
    (tmp_path / "meminfo").unlink()
    assert free_bytes(cpu) > 0


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tiny model, saved in bfloat16."""
    folder = tmp_path_factory.mktemp("models") / "half"
    model, processor = Pretrained("tiny", "bfloat16").load()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "dtype"), [([], torch.bfloat16), (["--dtype", "float32"], torch.float32)]
)
@pytest.mark.parametrize(
    ("free", "asked", "together"), [(0, [], 1), (10**15, [], 3), (0, ["--batch", "2"], 2)]
)
def test_evaluate_takes_both_from_what_is_there(
    saved, tmp_path, monkeypatch, capsys, options, dtype, free, asked, together
):
    rows = [{"index": n, "question": ASK, **ABCD, "answer": "A", "image": BASE64[0]} for n in range(3)]
    data, seen = write_tsv(tmp_path / "vstar.tsv", rows), []
    real = command.respond

    def watch(model, encoder, engine, samples, *rest):
        seen.append((model.dtype, len(samples)))
        return real(model, encoder, engine, samples, *rest)

    monkeypatch.setattr(command, "respond", watch)
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    main(["evaluate", "--benchmark", "vstar", "--data", str(data), "--model", str(saved), "--out",
          str(tmp_path / "out"), "--max_new_tokens", "4", *options, *asked])  # fmt: skip
    assert {found for found, _ in seen} == {dtype} and max(count for _, count in seen) == together
    assert re.search(
        rf"3 rows in .* s, {asked[1] if asked else 64 if free else 1} together", capsys.readouterr().out
    )
    settings = json.loads((tmp_path / "out" / "half" / "text" / "vstar.json").read_text())
    assert settings["dtype"] == str(dtype).removeprefix("torch.")
    assert settings["batch"] == (int(asked[1]) if asked else None)


def test_a_model_that_names_no_dtype_is_float32(monkeypatch):
    from ivgr.tools.inference import load_policy as load

    part = SimpleNamespace(dtype=None)
    config = SimpleNamespace(dtype=None, get_text_config=lambda: part)
    monkeypatch.setattr(load, "read_config", lambda *_: config)
    assert load.saved_dtype("evaluate", "x") == "float32"
    part.dtype = torch.float16
    assert load.saved_dtype("evaluate", "x") == "float16"
