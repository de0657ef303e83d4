"""Shards behind URLs and commands: a loopback http server, fsspec's memory file system."""

import io
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from ivgr.core.errors import UserError
from ivgr.core.rejection import Rejection
from ivgr.data.shard_index import ShardSize, write_sizes
from ivgr.data.shards import find_shards, read_samples, validate_shards, write_shards
from support.samples import make_sample

COUNT = 7


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder without ranges; `script` says what becomes of each GET: a status, or a
    number of bytes after which the line is cut."""

    def __init__(self, *args, script: list, **kwargs) -> None:
        self.script = script
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        step = self.script.pop(0) if self.script else None
        if step in (404, 503):
            return self.send_error(step)
        if step is None:
            return super().do_GET()
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:step])
        self.close_connection = True

    def log_message(self, *args) -> None:
        pass


@contextmanager
def serving(folder: Path, script: list):
    handler = partial(Handler, directory=str(folder), script=script)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def folder(tmp_path) -> Path:
    write_shards(tmp_path, "train", [make_sample(f"s{i}", images=(bytes(9000),)) for i in range(COUNT)], 4)
    return tmp_path


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("ivgr.data.tar.PAUSE", 0.001)


def ids(shards: list[str]) -> list[str]:
    return [item.reason if isinstance(item, Rejection) else item.sample.id for item in read_samples(shards)]


WHOLE = [f"s{i}" for i in range(COUNT)]


def test_shards_behind_http_are_read_by_brace_range_or_list(folder):
    with serving(folder, []) as url:
        names = [f"{url}/train-000000.tar", f"{url}/train-000001.tar"]
        assert find_shards(f"{url}/train-{{000000..000001}}.tar") == find_shards(names) == names
        assert ids(names) == WHOLE
        assert validate_shards(names) == {"paired": COUNT}


@pytest.mark.parametrize("script", [[503], [503, 404, 503], [20_000], [12_000, 503, 30_000], [0]])
def test_a_shard_is_taken_up_where_the_line_broke(folder, script):
    with serving(folder, script) as url:
        assert ids([f"{url}/train-000000.tar"]) == WHOLE[:4]
        assert not script


class Line(io.BytesIO):
    """Breaks off after so many bytes."""

    def __init__(self, data: bytes, length: int) -> None:
        super().__init__(data)
        self.length = length

    def read(self, size: int = -1) -> bytes:
        if self.tell() + size > self.length:
            raise ConnectionError("line cut")
        return super().read(size)


@pytest.mark.parametrize(
    ("lengths", "given"),
    [
        ([0] * 5, []),
        ([21_000] + [0] * 4, ["s0"]),
        ([0, 0, 0, 0, 21_000, 0, 0, 0, 0], ["s0"]),  # four in a row gave nothing, then one did
        ([21_000, 41_000, 0, 0, 0, 0], ["s0", "s1"]),
        ([0, 0, 0, 0, 99_000], WHOLE[:4]),
    ],
)
def test_a_shard_is_given_up_after_five_attempts_in_a_row(folder, monkeypatch, lengths, given):
    data = (folder / "train-000000.tar").read_bytes()
    lines = iter(lengths)
    monkeypatch.setattr("ivgr.data.tar.open_shard", lambda path, streamed: Line(data, next(lines)))
    gone = [] if len(given) == 4 else ["shard: unreachable"]
    assert ids(["http://host/train-000000.tar"]) == given + gone
    assert next(lines, None) is None


def test_set_up_names_a_shard_out_of_reach(folder):
    with serving(folder, []) as url, pytest.raises(UserError, match="train-000009.tar.*network") as caught:
        validate_shards([f"{url}/train-000009.tar"])
    assert "\n" not in str(caught.value)


def test_a_glob_over_http_is_told_of_the_brace_range():
    with pytest.raises(UserError, match="brace range"):
        find_shards("http://127.0.0.1:9/train-*.tar")


def test_globs_and_folders_work_where_the_file_system_can_list(folder):
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket", recursive=True)
    names = [f"memory://bucket/train-00000{i}.tar" for i in (0, 1)]
    for pattern in (
        "memory://bucket/train-*.tar",
        "memory://bucket",
        "memory://bucket/train-{000000..000001}.tar",
    ):
        assert [name.replace("///", "//") for name in find_shards(pattern)] == names
    assert ids(find_shards("memory://bucket")) == WHOLE
    with pytest.raises(UserError, match="no shard"):
        find_shards("memory://bucket/val-*.tar")


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match="gopher"):
        find_shards("gopher://host/train-0.tar")


def test_s3_without_its_package_names_the_extra(monkeypatch):
    def missing(*args, **kwargs):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(UserError, match=r"ivgr\[s3\]"):
        find_shards("s3://bucket/train-{0..3}.tar")


def test_a_pipe_runs_only_when_it_is_allowed(folder, tmp_path):
    command = f"pipe:touch {tmp_path}/ran; cat {folder}/train-00000{{0..1}}.tar"
    with pytest.raises(UserError, match="data.allow_pipe") as caught:
        find_shards(command)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()
    assert ids(find_shards(command, allow_pipe=True)) == WHOLE
    assert (tmp_path / "ran").exists()


def test_a_command_that_fails_is_one_rejection():
    [shard] = find_shards("pipe:exit 3", allow_pipe=True)
    assert ids([shard])[0].startswith("shard: ")


def test_a_file_whose_name_looks_like_a_command_is_a_file(folder, tmp_path, monkeypatch):
    odd = tmp_path / "odd"
    odd.mkdir()
    (folder / "train-000000.tar").rename(odd / "pipe:touch ran;.tar")
    monkeypatch.chdir(odd)
    for pattern in ("*.tar", "pip?:touch*", str(odd)):
        assert ids(find_shards(pattern)) == WHOLE[:4]
    assert [path.name for path in odd.iterdir()] == ["pipe:touch ran;.tar"]


def test_shards_are_written_into_a_folder_whose_name_looks_like_a_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_shards(Path("pipe:touch ran;"), "train", [make_sample()], 1)
    assert ids(find_shards("./pipe:touch ran;")) == ["s0"] and not (tmp_path / "ran").exists()


def test_stock_believes_sizes_beside_a_shard_of_those_bytes(folder):
    """The counts are false on purpose: they show who has been asked."""
    first, second = (folder / f"train-00000{i}.tar" for i in (0, 1))
    sizes = {
        first.name: ShardSize(90, 70, 20, first.stat().st_size, ""),
        second.name: ShardSize(90, 70, 20, second.stat().st_size + 1, ""),
    }
    write_sizes(folder, sizes)
    assert validate_shards([str(first), str(second)]) == {"paired": 73, "single": 20}
    with serving(folder, []) as url:
        assert validate_shards([f"{url}/{path.name}" for path in (first, second)]) == {
            "paired": 73,
            "single": 20,
        }


def test_sizes_that_cannot_be_read_are_named(folder):
    (folder / "sizes.json").write_text('{"shards": {"train-000000.tar": {"samples": 3}}}')
    with pytest.raises(UserError, match="sizes.json"):
        validate_shards(find_shards(str(folder)))
