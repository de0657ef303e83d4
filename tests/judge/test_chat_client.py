"""The judge's client and the LLM judge against a server with scripted faults."""

import gzip
import multiprocessing
import sqlite3
import sys
import threading
import time
import tracemalloc
import zlib
from contextlib import closing

import pytest

from ivgr.core.errors import UserError
from ivgr.judge import Agreement, Comparison, LLMJudge
from ivgr.judge.bounded_transport import LONGEST_REPLY
from ivgr.judge.chat_client import ChatClient
from ivgr.judge.rubric import AGREEMENT, agreement_data, comparison_data
from ivgr.judge.verdict_cache import VerdictCache
from support.judge_server import JudgeServer, fair_verdict, lossy
from support.samples import RELATIVE, make_sample

QUESTIONS = [Agreement(make_sample(f"s{i}"), f"answer {i}") for i in range(40)]
COMPARISONS = [
    Comparison(make_sample("s0"), "All is red.", f"Thing {i} is red.", RELATIVE) for i in range(40)
]
TRUTH = [fair_verdict(agreement_data(question))["agrees"] for question in QUESTIONS]
SCORES = [fair_verdict(comparison_data(comparison))["score"] for comparison in COMPARISONS]


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def judge_at(server, **settings):
    given = {"cache": None, "pause": 0.01, "timeout": 2.0, "patience": 0.5, "missing_limit": 1.0}
    return LLMJudge(server.url, "m", **given | settings)


def test_a_healthy_server_answers_every_question_in_order():
    with JudgeServer() as server:
        judge = judge_at(server)
        assert judge.agree(QUESTIONS) == TRUTH
        assert judge.compare(COMPARISONS) == SCORES
        report = judge.report()
    assert set(TRUTH) == {True, False} and len(set(SCORES)) == 4
    assert report["requests"] == len(server.requests) == 80
    assert report["retries"] == report["failures/reply"] == 0
    assert judge.report()["requests"] == 0


def test_an_empty_batch_asks_nobody():
    with JudgeServer() as server:
        assert judge_at(server).agree([]) == judge_at(server).compare([]) == []
    assert server.requests == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("500", "busy"), ("429", "busy"), ("disconnect", "connection"), ("garbage", "reply"),
        ("html", "reply"), ("prose", "reply"), ("cut", "reply"), ("silent", "timeout"), ("drip", "timeout"),
    ],
)  # fmt: skip
def test_each_fault_is_counted_and_asked_again(fault, reason):
    with JudgeServer(fault=lambda number, data: fault if number < 3 else None) as server:
        judge = judge_at(server, timeout=0.3)
        assert judge.agree(QUESTIONS[:3]) == TRUTH[:3]
        report = judge.report()
    assert report[f"failures/{reason}"] == report["retries"] == 3 and report["requests"] == 6


def test_what_the_server_refuses_is_not_asked_again():
    with JudgeServer(fault=lambda number, data: "404") as server:
        judge = judge_at(server)
        assert judge.agree(QUESTIONS[:3]) == [None] * 3
    assert len(server.requests) == 3 and judge.report()["failures/refused"] == 3


def send(handler, status=200, body=b"", length=None, **headers):
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_origin_is_not_followed_but_counted_and_said(status):
    with JudgeServer() as other:
        there = other.url + "/chat/completions"
        with JudgeServer(fault=lambda *_: lambda handler, _: send(handler, status, Location=there)) as server:
            judge = judge_at(server, missing_limit=0.0, patience=0.0)
            with pytest.raises(UserError, match=f"status {status} to {there}") as error:
                judge.agree(QUESTIONS[:3])
        assert other.requests == [] and len(server.requests) == 3
    assert "\n" not in str(error.value) and judge.report()["failures/redirect"] == 3


def test_a_redirect_within_the_origin_is_followed_and_not_for_ever():
    hop = lambda handler, _: send(handler, 307, Location="/v1/chat/completions")  # noqa: E731
    with JudgeServer(fault=lambda number, _: hop if number < 3 else None) as server:
        assert judge_at(server).agree(QUESTIONS[:1]) == TRUTH[:1]
        assert len(server.requests) == 4 and server.requests[0] == server.requests[3]
    with JudgeServer(fault=lambda *_: hop) as server:
        judge = judge_at(server)
        assert judge.agree(QUESTIONS[:1]) == [None]
    assert len(server.requests) < 10 and judge.report()["failures/redirect"] == 1


def bomb(size: int) -> bytes:
    """Zeros, gzipped."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(size >> 20)) + packer.flush()


def endless(handler, _):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))  # ends when the client hangs up


BOMB = bomb(2**26)
TOO_LONG = {
    "unpacked": lambda handler, _: send(handler, body=BOMB, Content_Encoding="gzip"),
    "plain": lambda handler, _: send(handler, body=bytes(LONGEST_REPLY + 1)),
    "endless": endless,
    "packed without end": lambda handler, _: send(
        handler, body=gzip.compress(b"") * (LONGEST_REPLY // 20 + 1), Content_Encoding="gzip"
    ),
    "packed twice": lambda handler, _: send(handler, body=BOMB, Content_Encoding="gzip, gzip"),
    "another packing": lambda handler, _: send(handler, body=BOMB, Content_Encoding="zstd"),
    "no packing": lambda handler, _: send(handler, body=b"{}" * 99, Content_Encoding="gzip"),
    "error": lambda handler, _: send(handler, 500, BOMB, Content_Encoding="gzip"),
}


@pytest.mark.parametrize("kind", TOO_LONG)
def test_no_more_of_a_reply_is_read_than_the_bound(kind):
    with JudgeServer(fault=lambda *_: TOO_LONG[kind]) as server:
        judge = judge_at(server, timeout=20.0, retries=1)
        judge.agree([])
        tracemalloc.start()
        assert judge.agree(QUESTIONS[:1]) == [None]
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert judge.report()["failures/busy" if kind == "error" else "failures/reply"] == 2
    assert most < 5 * LONGEST_REPLY


def test_a_reply_that_is_packed_all_the_same_is_read():
    packed = lambda handler, content: send(handler, body=gzip.compress(content), Content_Encoding="gzip")  # noqa: E731
    with JudgeServer(fault=lambda *_: packed) as server:
        assert judge_at(server).agree(QUESTIONS) == TRUTH


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-1", "2", "1e999", '"1"', "null"])
def test_what_is_no_score_is_a_verdict_that_never_came(text):
    def odd(handler, content):
        body = content.replace(b": 9}", f": {text}}}".replace('"', '\\"').encode())
        assert body != content
        send(handler, body=body)

    with JudgeServer(lambda data: {"score": 9}, fault=lambda *_: odd) as server:
        judge = judge_at(server, retries=0)
        assert judge.compare(COMPARISONS[:2]) == [None, None]
    assert judge.report()["failures/reply"] == 2


@pytest.mark.parametrize("retries", [0, 6])
def test_with_a_third_lost_verdicts_are_right_or_left_out(retries):
    with JudgeServer(fault=lossy(0.3)) as server:
        verdicts = judge_at(server, retries=retries).agree(QUESTIONS)
    assert all(verdict in (truth, None) for verdict, truth in zip(verdicts, TRUTH, strict=True))
    assert (0 < verdicts.count(None) < 25) if retries == 0 else verdicts == TRUTH


def test_a_fault_of_some_questions_leaves_the_others():
    with JudgeServer(fault=lambda number, data: "prose" if data["answer"].endswith("7") else None) as server:
        verdicts = judge_at(server, retries=1).agree(QUESTIONS)
    assert verdicts == [None if i % 10 == 7 else TRUTH[i] for i in range(40)]
    assert len(server.requests) == 40 + 4


@pytest.mark.parametrize("concurrency", [1, 4, 40])
def test_as_many_requests_are_under_way_as_concurrency_allows_and_no_more(concurrency):
    together = threading.Barrier(concurrency)  # no reply before so many requests are there

    def verdict(data):
        together.wait(20)
        return fair_verdict(data)

    with JudgeServer(verdict) as server:
        judge = judge_at(server, concurrency=concurrency, timeout=20.0, retries=0)
        assert judge.agree(QUESTIONS) == TRUTH
    assert server.most == concurrency


def test_a_server_that_never_answers_is_given_up_at_the_batchs_deadline():
    with JudgeServer(fault=lambda *_: "silent") as server:
        judge = judge_at(server, timeout=60.0, batch_seconds=0.3, concurrency=4)
        start = time.monotonic()
        assert judge.agree(QUESTIONS) == [None] * 40
        assert time.monotonic() - start < 3
    assert judge.report()["failures/deadline"] == 40 and len(server.requests) == 4


def test_a_server_that_is_not_there_is_given_up():
    with JudgeServer() as server:
        pass
    judge = judge_at(server, retries=1)
    assert judge.agree(QUESTIONS[:2]) == [None, None]
    assert judge.report()["failures/connection"] == 4


def test_votes_are_averaged_and_a_missing_vote_leaves_the_score_out():
    replies = {"one": [0.0, 0.3, 0.7, 1.0], "two": [1.0] * 4}
    lock = threading.Lock()

    def verdict(data):
        with lock:
            return {"score": replies[data["reasoning"]].pop() if replies[data["reasoning"]] else "none"}

    comparisons = [Comparison(make_sample(), "All.", think, RELATIVE) for think in ("one", "two")]
    with JudgeServer(verdict) as server:
        judge = judge_at(server, votes=4, retries=0)
        assert judge.compare(comparisons) == [pytest.approx(0.5), 1.0]
        replies["one"] = [1.0] * 3
        assert judge.compare(comparisons[:1]) == [None]
    assert {request["temperature"] for request in server.requests} == {0.5}


def test_blank_reasoning_agrees_with_nothing_and_costs_nothing():
    with JudgeServer() as server:
        blank = Comparison(make_sample(), "All.", " \n", RELATIVE)
        assert judge_at(server).compare([blank, COMPARISONS[0], blank]) == [0.0, SCORES[0], 0.0]
    assert len(server.requests) == 1


def test_a_second_judge_is_served_from_the_cache_without_one_request(tmp_path):
    cache = str(tmp_path / "deep" / "judge.sqlite")
    with JudgeServer() as server:
        first = judge_at(server, cache=cache, votes=2)
        verdicts = first.agree(QUESTIONS), first.compare(COMPARISONS)
        asked = len(server.requests)
        second = judge_at(server, cache=cache, votes=2)
        assert (second.agree(QUESTIONS), second.compare(COMPARISONS)) == verdicts
        assert len(server.requests) == asked == 40 + 80
    assert second.report()["cache_hits"] == 120 and second.report()["requests"] == 0


def test_another_model_or_temperature_is_another_question(tmp_path):
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer() as server:
        for changed in ({}, {"temperature": 0.1}, {"extra_body": {"top_k": 1}}, {"structured": "none"}):
            judge_at(server, cache=cache, **changed).compare(COMPARISONS[:1])
        LLMJudge(server.url, "other", cache=cache).compare(COMPARISONS[:1])
    assert len(server.requests) == 5


def test_only_verdicts_are_kept_and_what_is_missing_is_asked_again(tmp_path):
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer(fault=lambda n, data: "prose" if n % 2 else None) as server:
        first = judge_at(server, cache=cache, retries=0, concurrency=1).agree(QUESTIONS)
    with JudgeServer() as server:
        assert judge_at(server, cache=cache).agree(QUESTIONS) == TRUTH
    assert first.count(None) == len(server.requests) == 20


def test_judges_at_once_share_one_cache(tmp_path):
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer() as server:
        judges = [judge_at(server, cache=cache) for _ in range(4)]
        found = [None] * 4
        threads = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, judges[i].agree(QUESTIONS)))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [TRUTH] * 4
    count = sqlite3.connect(cache).execute("SELECT count(*) FROM verdicts").fetchone()
    assert count == (40,)


def write_many(path, name):
    cache = VerdictCache(path)
    for number in range(200):
        cache.put(f"{name} {number}", "{}")
        if number % 10 == 0:
            cache.save()
    cache.save()


def test_processes_at_once_write_one_cache_and_its_journal_needs_no_shared_memory(tmp_path):
    path = tmp_path / "judge.sqlite"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM verdicts").fetchone() == (400,)
    assert journal_of(path) == b"\1\1" and not list(tmp_path.glob("*-shm"))


def journal_of(path) -> bytes:
    """How the file says that it is written and read: 2 is a write-ahead log (sqlite.org/fileformat2)."""
    return path.read_bytes()[18:20]


def test_a_cache_of_an_earlier_version_loses_its_write_ahead_log_and_nothing_else(tmp_path):
    path = tmp_path / "judge.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
        connection.execute("INSERT INTO verdicts VALUES ('old', '{}')")
    connection.close()
    assert journal_of(path) == b"\2\2"
    cache = VerdictCache(path)
    cache.put("new", "[]")
    cache.save()
    assert (cache.get("old"), cache.get("new")) == ("{}", "[]") and journal_of(path) == b"\1\1"


@pytest.mark.parametrize("kind", ["folder", "another kind", "another database"])
def test_what_is_no_cache_is_refused_before_any_work(tmp_path, kind):
    path = tmp_path / "judge.sqlite"
    if kind == "folder":
        path.mkdir()
    elif kind == "another kind":
        path.write_bytes(b"\xff\xd8" * 900)
    else:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("CREATE TABLE verdicts (number INTEGER)")
    with pytest.raises(UserError, match=f"^judge cache {path}: cannot be used .*; move it away or give"):
        LLMJudge("http://127.0.0.1:9/v1", "none", cache=str(path))


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_cache_is_made_on_first_use(tmp_path, kind):
    path = tmp_path / "deep" / "judge.sqlite"
    if kind == "empty":
        path.parent.mkdir()
        path.touch()
    cache = LLMJudge("http://127.0.0.1:9/v1", "none", cache=str(path)).cache
    assert path.parent.exists() == (kind == "empty")
    cache.put("key", "{}")
    cache.save()
    assert VerdictCache(path).get("key") == "{}"


def test_verdicts_are_stored_while_the_rest_is_awaited(tmp_path, monkeypatch):
    monkeypatch.setattr("ivgr.judge.verdict_cache.BETWEEN", 0.0)
    path = tmp_path / "judge.sqlite"
    cache = VerdictCache(path)
    cache.put("early", "{}")
    assert VerdictCache(path).get("early") == "{}"


def test_a_cache_that_another_process_holds_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("ivgr.judge.verdict_cache.PATIENCE", 0.1)
    path = tmp_path / "judge.sqlite"
    VerdictCache(path).get("any")
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match="judge cache .*locked.*move it away") as error:
        VerdictCache(path).get("any")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("offset", [0, 20, 60, 100, 4096])
def test_a_damaged_cache_is_one_clear_line_or_read(tmp_path, offset):
    path = tmp_path / "judge.sqlite"
    write_many(path, "a")
    content = bytearray(path.read_bytes())
    content[offset : offset + 64] = bytes(range(64, 128))
    path.write_bytes(content)
    try:
        cache = VerdictCache(path)
        cache.put("b", "{}")
        cache.save()
        assert cache.get("a 7") in ("{}", None)
    except UserError as error:
        assert str(error).startswith(f"judge cache {path}: cannot be used") and "\n" not in str(error)


def test_another_programs_database_is_one_clear_line(tmp_path):
    path = tmp_path / "judge.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE verdicts (id INTEGER)")
    with pytest.raises(UserError, match="no such column"):
        VerdictCache(path).get("any")


@pytest.mark.parametrize("stored", ["7", "x'ff'", "x'7b7d'"])
def test_a_stored_value_of_another_type_is_no_verdict(tmp_path, stored):
    path = tmp_path / "judge.sqlite"
    with JudgeServer() as server:
        judge_at(server, cache=str(path)).agree(QUESTIONS[:1])
        with sqlite3.connect(path) as connection:
            connection.execute(f"UPDATE verdicts SET verdict = {stored}")
        with pytest.raises(UserError, match="no verdict"):
            judge_at(server, cache=str(path)).agree(QUESTIONS[:1])


@pytest.mark.parametrize("content", [b"not a database" * 100, None], ids=["garbage", "folder"])
def test_an_unusable_cache_is_one_clear_line(tmp_path, content):
    path = tmp_path / "judge.sqlite"
    path.mkdir() if content is None else path.write_bytes(content)
    with JudgeServer() as server, pytest.raises(UserError, match="judge cache .*judge.sqlite") as error:
        judge_at(server, cache=str(path)).agree(QUESTIONS)
    assert "\n" not in str(error.value) and server.requests == []


def test_a_stored_value_that_is_no_verdict_is_named(tmp_path):
    cache = str(tmp_path / "judge.sqlite")
    with JudgeServer() as server:
        judge_at(server, cache=cache).agree(QUESTIONS[:1])
        with sqlite3.connect(cache) as connection:
            connection.execute("UPDATE verdicts SET verdict = '{\"agrees\": 1}'")
        with pytest.raises(UserError, match="no verdict"):
            judge_at(server, cache=cache).agree(QUESTIONS[:1])


def test_past_the_limit_it_says_so_waits_and_goes_on_when_the_judge_is_back(caplog):
    with JudgeServer(fault=lambda number, data: "500" if number < 100 else None) as server:
        judge = judge_at(server, retries=0, missing_limit=0.1, patience=20.0)
        assert judge.agree(QUESTIONS) == TRUTH
    (said,) = caplog.messages
    assert "\n" not in said and "no verdict on 40 of 40" in said and "status 500" in said
    assert judge.report()["pauses"] == 1


def test_up_to_the_limit_it_goes_on_without_the_missing(caplog):
    fault = lambda number, data: "500" if data["answer"] in ("answer 1", "answer 2") else None  # noqa: E731
    with JudgeServer(fault=fault) as server:
        verdicts = judge_at(server, retries=0, missing_limit=0.05).agree(QUESTIONS)
    assert verdicts.count(None) == 2 and caplog.messages == []


@pytest.mark.parametrize(
    ("fault", "reason"), [("500", "status 500"), ("silent", "no reply within 0.1 s"), ("404", "status 404")]
)
def test_when_patience_ends_it_stops_with_one_line(fault, reason):
    with JudgeServer(fault=lambda *_: fault) as server:
        timeout = 0.1 if fault == "silent" else 5.0
        judge = judge_at(server, retries=0, timeout=timeout, missing_limit=0.1, patience=0.4)
        start = time.monotonic()
        with pytest.raises(UserError, match="no verdict on 5 of 5 questions .* within 0.4 s") as error:
            judge.agree(QUESTIONS[:5])
        assert time.monotonic() - start < 8
    assert "\n" not in str(error.value) and reason in str(error.value)


def test_the_request_asks_for_the_form_of_the_verdict():
    with JudgeServer() as server:
        for structured in ("json_schema", "json_object", "none"):
            judge_at(server, structured=structured).compare(COMPARISONS[:1])
    first, second, third = server.requests
    schema = first["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["properties"]["score"]["enum"] == [0.0, 0.3, 0.7, 1.0]
    assert second["response_format"] == {"type": "json_object"} and "response_format" not in third
    assert first["temperature"] == 0.0 and first["model"] == "m"


def test_the_key_is_read_from_the_named_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with JudgeServer() as server:
        client = ChatClient(server.url, "m", api_key_env="MY_KEY")
        chat = AGREEMENT.conversation(agreement_data(QUESTIONS[0]))
        assert client.ask([chat], lambda text: text) == [
            '{"agrees": true}' if TRUTH[0] else '{"agrees": false}'
        ]
    assert "secret" not in repr(vars(client))


def test_an_error_in_the_callers_parser_is_raised():
    with JudgeServer() as server, pytest.raises(ZeroDivisionError):
        ChatClient(server.url, "m").ask([AGREEMENT.conversation({})], lambda text: 1 / 0)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r'pip install "ivgr\[judge\]"'):
        LLMJudge("http://127.0.0.1:1/v1", "m")


@pytest.mark.parametrize("setting", [{"votes": 0}, {"concurrency": 0}])
def test_a_bad_setting_is_named(setting):
    with pytest.raises(UserError, match=next(iter(setting))):
        LLMJudge("http://127.0.0.1:1/v1", "m", **setting)
