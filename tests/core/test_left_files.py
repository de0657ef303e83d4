"""What a command has left and reads again: where it is broken, one line names it."""

import gzip
import sqlite3

import pytest

from ivgr.core.errors import UserError
from ivgr.core.rejection import Rejection
from ivgr.data.quarantine import Quarantine
from ivgr.tools.benchmarks.evaluate import read_columns
from ivgr.tools.distill.collect import read_rollouts
from ivgr.tools.packing_data.pack_state import NAME, PackState
from ivgr.tools.packing_data.unpack import MARKER, unpack_archive

BROKEN = [b"{", b"[]", b"7", b"[" * 100_000, b"\xff\xfe", b'{"notes": 1, "figures": 2}']


def one_line(error, *names):
    said = str(error.value)
    assert "\n" not in said and all(name in said for name in names), said


@pytest.mark.parametrize("content", BROKEN)
def test_scores(tmp_path, content):
    path = tmp_path / "tiny" / "text" / "vstar.scores.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_columns(tmp_path)
    one_line(error, str(path), "ivgr evaluate")


@pytest.mark.parametrize("content", BROKEN)
def test_the_marker_of_an_archive(tmp_path, content):
    (tmp_path / "images.tar").write_bytes(b"")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / MARKER).write_bytes(content)
    with pytest.raises(UserError) as error:
        unpack_archive(tmp_path / "images.tar", tmp_path / "images")
    one_line(error, str(tmp_path / "images"), "remove the folder")


@pytest.mark.parametrize("content", [one + b"\n" for one in BROKEN])
def test_the_list_of_what_was_rejected(tmp_path, content):
    path = tmp_path / "quarantine.jsonl"
    path.write_bytes(content)
    rejected = Rejection("image: broken", "no image", "s.tar", "k", "a")
    with pytest.raises(UserError) as error:
        Quarantine(path, 0.5).add([rejected], 10)
    one_line(error, str(path), "remove it")


@pytest.mark.parametrize("content", [one.decode("latin-1") for one in BROKEN])
def test_the_journal_of_a_pack(tmp_path, content):
    with sqlite3.connect(tmp_path / NAME) as db:
        db.execute("CREATE TABLE pack (setting TEXT, finished INTEGER)")
        db.execute("INSERT INTO pack VALUES (?, 0)", (content,))
    db.close()
    with pytest.raises(UserError) as error:
        PackState(tmp_path, {"source": "rows.json"})
    one_line(error, "--overwrite")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"{", b"\xff\xfe"])
def test_the_record_of_a_run(tmp_path, content):
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "000001.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError) as error:
        list(read_rollouts(tmp_path))
    one_line(error, "000001.jsonl.gz", "remove it")
