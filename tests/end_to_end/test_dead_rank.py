"""A process that dies ends all, with one line that says who and what; the run goes on as if unbroken."""

import queue
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ivgr.distributed import peers
from ivgr.distributed.links import open_links
from ivgr.distributed.peers import Links
from ivgr.launch.error_lines import mendable_line
from support.contents import contents, differences
from support.launch import finish, fit, said, start, write_world

pytestmark = pytest.mark.multiprocess

RUN = {"model.iterations": 3, "checkpoint_every": 2}
LIMIT = 60
WHERE = {
    "rollout": "in rollout of iteration 2",
    "scoring": "iteration 2",
    "update": "in update of iteration 2",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """What an unbroken run leaves, by its settings."""
    kept = {}

    def run(settings: dict) -> dict:
        key = str(settings)
        if key not in kept:
            kept[key] = left_by(fit(2, tmp_path_factory.mktemp("whole"), world | RUN | settings))
        return kept[key]

    return run


def left_by(root) -> dict:
    """Rollouts, checkpoints and figures."""
    found = contents(root)
    files = {name: value for name, value in found.items() if name.startswith(("rollouts/", "checkpoints/"))}
    figures = {name: value for name, value in found["./events"].items() if isinstance(value, float)}
    assert len(files) >= 5 and len(figures) > 60
    return files | figures


def doom(fate: str, place: str, rank: int = 1) -> dict:
    named = {"fate": fate, "place": place, "rank": rank}
    return {"model.judge": "support.doom.Doom"} | {
        f"model.judge.{name}": value for name, value in named.items()
    }


def break_off(root, settings) -> tuple[list[int], list[list[str]]]:
    """The exit codes of two ranks, and the lines of each that tell of errors; both end in time."""
    processes = start(2, root, settings)
    while all(process.is_alive() for process in processes):
        time.sleep(0.05)
    first = time.monotonic()
    codes = finish(processes)
    assert time.monotonic() - first < LIMIT
    told = ("rror", "Traceback", "arning", "terminate")
    return codes, [
        [line for line in said(root, rank).splitlines() if any(word in line for word in told)]
        for rank in range(2)
    ]


@pytest.fixture
def told(monkeypatch):
    """The lines with which ranks of this process would end."""
    lines = queue.Queue()
    monkeypatch.setattr(peers, "end", lines.put)
    monkeypatch.setattr(peers, "GRACE", 0.2)
    return lines


ALIVE = []  # a link that nobody holds is closed


def link_three(leaving=lambda: False) -> tuple[Links, Links, socket.socket]:
    """Rank 0, rank 1 and the bare link of rank 2."""
    (zero_one, one), (zero_two, two) = socket.socketpair(), socket.socketpair()
    others = {"place": lambda: " at play", "advice": "go on", "leaving": leaving}
    ranks = Links(0, {1: zero_one, 2: zero_two}, **others), Links(1, {0: one}, **others), two
    ALIVE.append(ranks)
    return ranks


def test_every_rank_hears_who_is_gone(told):
    *_, two = link_three()
    two.close()
    line = "rank 2 is gone (killed, or its machine is out of reach) at play, see what it wrote last; go on"
    assert [told.get(timeout=5) for _ in range(2)] == [line, line]


def test_a_rank_that_stops_alone_ends_the_others_with_its_words(told):
    ranks = link_three()
    ranks[2].sendall(b'[2, "no bread"]\n')
    line = "rank 2 has stopped at play: no bread; go on"
    assert [told.get(timeout=5) for _ in range(2)] == [line, line]


@pytest.mark.parametrize(("said", "leaving"), [(b'[2, ""]\n', False), (b'[2, "no bread"]\n', True)])
def test_a_rank_that_is_done_or_stops_as_all_do_ends_none(told, said, leaving):
    ranks = link_three(lambda: leaving)
    ranks[2].sendall(said)
    ranks[2].close()
    with pytest.raises(queue.Empty):
        told.get(timeout=0.6)


def test_ranks_are_linked_and_a_stranger_is_sent_away(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    address = queue.Queue()

    def announce(found):
        with socket.create_connection(("127.0.0.1", found[0])) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        address.put(found), address.put(found)

    with ThreadPoolExecutor(3) as pool:
        zero = pool.submit(open_links, 0, 3, announce, 20)
        others = [pool.submit(open_links, rank, 3, lambda _: address.get(), 20) for rank in (1, 2)]
        links = zero.result(20)
        for rank, other in zip((1, 2), others, strict=True):
            other.result(20)[0].sendall(bytes([rank]))
            assert links[rank].recv(9) == bytes([rank])
    options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    idle, interval, count = (links[1].getsockopt(socket.IPPROTO_TCP, option) for option in options)
    assert links[1].getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) and idle + interval * count == 20


@pytest.mark.parametrize("how", ["(s) 7, 8) exited unexpectedly", " 7) is killed by signal: Killed. "])
def test_a_reader_process_that_dies_is_one_line(how):
    line = mendable_line(RuntimeError(f"DataLoader worker (pid{how}"))
    assert line == f"data.workers: DataLoader worker (pid{how.rstrip('. ')}; go on with --ckpt_path auto"


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_other(world, tmp_path):
    codes, (told, _) = break_off(tmp_path, world | RUN | doom("die", "rollout"))
    assert codes == [1, -9] and len(told) == 1
    assert told[0].startswith("ivgr: error: rank 1 is gone") and told[0].endswith("--ckpt_path auto")
    assert WHERE["rollout"] in told[0]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("place", "rank"), [("rollout", 1), ("scoring", 1), ("update", 1), ("rollout", 0)])
def test_a_run_whose_rank_was_killed_goes_on(world, whole, tmp_path, strategy, place, rank):
    settings = {"trainer.strategy": strategy}
    codes, told = break_off(tmp_path, world | RUN | settings | doom("die", place, rank))
    other = 1 - rank
    assert codes[rank] == -9 and codes[other] == 1
    assert len(told[other]) == 1 and told[other][0].startswith(f"ivgr: error: rank {rank} is gone")
    assert WHERE[place] in told[other][0]
    fit(2, tmp_path, world | RUN | settings, "--ckpt_path", "auto")
    assert differences(whole(settings), left_by(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_judge_that_hangs_ends_all(world, whole, tmp_path, strategy):
    settings = {"trainer.strategy": strategy}
    patience = {"model.guard.judge_timeout": 8}
    codes, told = break_off(tmp_path, world | RUN | settings | patience | doom("hang", "scoring"))
    assert codes == [2, 2] and [len(lines) for lines in told] == [1, 1]
    line = "model.judge: Doom has not answered for 8 seconds (model.guard.judge_timeout)"
    assert told[1][0].startswith(f"ivgr: error: {line}")
    assert told[0][0].startswith(f"ivgr: error: the judge of rank 1 gave no verdicts: {line}")
    fit(2, tmp_path, world | RUN | settings, "--ckpt_path", "auto")
    assert differences(whole(settings), left_by(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_reader_process_that_dies_ends_all(world, whole, tmp_path, strategy):
    settings = {"trainer.strategy": strategy, "data.workers": 1}
    codes, told = break_off(tmp_path, world | RUN | settings | doom("lose_reader", "rollout"))
    assert codes == [1, 2] and [len(lines) for lines in told] == [1, 1]
    assert told[1][0].startswith("ivgr: error: data.workers: DataLoader worker (pid")
    assert told[0][0].startswith("ivgr: error: rank 1 has stopped ")
    assert "DataLoader worker (pid" in told[0][0]
    fit(2, tmp_path, world | RUN | settings, "--ckpt_path", "auto")
    assert differences(whole(settings), left_by(tmp_path)) == []
