"""Equality as mathematics: what math-verify says, and within the time also where it would never say it."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_verify import parse, verify

import ivgr.rewards
from ivgr.core.errors import UserError
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.data.shards import write_shards
from ivgr.evaluation.held_out import HeldOutFigures
from ivgr.judge import Agreement
from ivgr.rewards import math_worker, mathematics
from ivgr.rewards.accuracy import prepare, read_accuracy
from ivgr.rewards.archive import Archive
from ivgr.rewards.mathematics import compare_math, math_match
from ivgr.rewards.rewards import Rewards
from ivgr.tools.distill.collect import Candidate
from ivgr.tools.distill.keep import GIVEN_UP, KEPT, judge_rewrites
from ivgr.tools.filter import measure_rates
from ivgr.toy import RuleJudge
from ivgr.trainer.metrics import batch_metrics
from support.samples import RELATIVE, RecordingJudge, make_query, make_rollout, make_sample, response

ENDLESS = [
    "3^{ 3^{ 3^{ 9 } } }",
    "9!!!",
    r"\binom{90000000}{45000000}",
    "((7^{99})^{999})^{999}",
    "2^{1+9999999999}",
    "7^{7*10^{9}}",
    "((9^{999})^{999})^{999}",
    r"\binom{1000000000}{500000000}",
]
LONG = "((9^{999})^{999})^{%d}"


def await_worker():
    while not math_match("1.0", "1"):
        mathematics._evaluate.cache_clear()
    mathematics._evaluate.cache_clear()


@pytest.fixture
def hurried(monkeypatch):
    """Half a second instead of four, and nothing remembered."""
    await_worker()
    monkeypatch.setattr(mathematics, "CALL", 1.5)
    yield
    mathematics._evaluate.cache_clear()


def by_hand(answer, gold):
    """The same in this process, without a limit."""
    if answer.strip() == gold.strip() != "":
        return True
    parsed = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
    return all(parsed) and verify(*parsed, timeout_seconds=None)


numbers = st.builds(Fraction, st.integers(-9, 9), st.sampled_from([1, 2, 4, 5]))
forms = st.sampled_from(
    ["{n}/{d}", "\\frac{{{n}}}{{{d}}}", "{f}", "{n}", "({n})", "x={n}", "{n}\\%", "{n}x+{d}", "\\sqrt{{{d}}}",
     "[{n}, {d}]", "\\{{{n}, {d}\\}}", "no {n}", "{n}^{d}", "${n}$", "{n},000"]
)  # fmt: skip
terms = st.builds(lambda x, form: form.format(n=x.numerator, d=x.denominator, f=float(x)), numbers, forms)


@settings(max_examples=15, deadline=None)
@given(terms, terms)
def test_the_verdict_is_math_verifys_own(answer, gold):
    assert math_match(answer, gold) is by_hand(answer, gold)


@given(st.text(max_size=12), st.sampled_from(["5", "", "x", "\\frac{1}{2}"]))
@settings(max_examples=15, deadline=None)
def test_any_text_gets_the_verdict_that_it_got(text, gold):
    assert math_match(text, gold) is by_hand(text, gold)


@pytest.mark.parametrize("answer", ENDLESS)
def test_what_has_no_end_is_given_up_and_the_next_is_answered(hurried, answer):
    start = time.monotonic()
    assert compare_math(answer, "5") is None and math_match(answer, "5") is False
    assert math_match("0.5", r"\frac{1}{2}") and not math_match("0.5", r"\frac{1}{3}")
    assert time.monotonic() - start < 3


def test_large_numbers_that_can_be_compared_are():
    assert math_match("2^{2024}", "4^{1012}") and not math_match("2^{2024}", "4^{1011}")
    assert math_match("20!", "2432902008176640000")


SCRIPT = """
import os, threading, time
start = time.monotonic()
from ivgr.rewards import math_match
answers = []
def ask(name):
    begun = time.monotonic()
    answers.append((name, math_match("((9^{999})^{999})^{999}", "5"), time.monotonic() - begun < 5))
    while not math_match("0.5", "1/2"):  # a worker that is still starting, on a busy machine
        pass
    answers.append((name, True, True))
ask("first")
from ivgr.rewards import mathematics
mathematics.CALL = 1.5
mathematics._evaluate.cache_clear()
thread = threading.Thread(target=ask, args=("thread",))
thread.start(), thread.join()
mathematics._evaluate.cache_clear()
if os.fork() == 0:
    answers.clear()
    ask("child")
    print(*answers, flush=True)
    os._exit(0)
os.wait()
ask("parent")
print(*answers, flush=True)
"""


@pytest.mark.parametrize("way", [pytest.param("stdin", marks=pytest.mark.slow), "script"])
def test_it_works_without_a_main_guard_in_a_thread_and_after_a_fork(way, tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(SCRIPT)
    words = [sys.executable, "-" if way == "stdin" else str(path)]
    done = subprocess.run(
        words, input=SCRIPT if way == "stdin" else None, capture_output=True, text=True, timeout=60
    )
    said = done.stdout
    for name in ("first", "thread", "child", "parent"):
        assert f"('{name}', False, True) ('{name}', True, True)" in said, (done.stdout, done.stderr)
    assert done.stderr == ""


def test_calls_at_the_same_time_do_not_wait_for_one_another(hurried, monkeypatch):
    out, most = set(), []

    class Pool(mathematics._Pool):
        def take(self):
            worker = super().take()
            out.add(worker)
            most.append(len(out))
            return worker

        def put(self, worker):
            out.discard(worker)
            super().put(worker)

    monkeypatch.setattr(mathematics, "_pool", Pool())
    monkeypatch.setattr(mathematics, "CALL", 3.0)
    with ThreadPoolExecutor(6) as threads:
        found = list(threads.map(lambda n: compare_math(LONG % n, "5"), range(901, 907)))
    assert found == [None] * 6 and max(most) > mathematics.KEPT
    assert 1 <= len(mathematics._pool.idle) <= mathematics.KEPT and not out
    mathematics._pool.close()
    assert not mathematics._pool.idle


def session(leader):
    """The processes of its session."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_the_workers_end_with_the_program(tmp_path):
    script = (
        "from ivgr.rewards import mathematics\n"
        "while not mathematics.math_match('1.0', '1'): pass\n"
        "print(mathematics._pool.idle[0].process.pid, flush=True)\n"
        "mathematics.math_match('((9^{999})^{999})^{999}', '5')\n"
    )
    program = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(program.stdout.readline())
    time.sleep(0.2)
    assert len(session(worker)) == 2
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    end = time.monotonic() + 10
    while session(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not session(worker)


def test_a_worker_that_died_while_it_was_idle_is_replaced(hurried):
    assert math_match("0.25", "1/4")
    for worker in mathematics._pool.idle:
        os.killpg(worker.process.pid, signal.SIGKILL)
        worker.process.wait()
    await_worker()
    assert math_match("0.75", "3/4")


def test_a_start_that_takes_long_is_not_the_answers_fault(monkeypatch, tmp_path):
    """Nothing is remembered of a call that got no worker in time, and the next one is answered."""
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {sys.executable} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(mathematics, "_pool", mathematics._Pool())
    monkeypatch.setattr(mathematics, "CALL", 1.6)
    monkeypatch.setattr(sys, "executable", str(slow))
    mathematics._evaluate.cache_clear()
    mathematics.start()
    (worker,) = mathematics._pool.idle
    assert compare_math("7/14", "0.5") is None and mathematics._pool.idle == [worker]
    while compare_math("7/14", "0.5") is None:
        pass
    assert compare_math("7/14", "0.5") is True and mathematics._pool.idle == [worker]
    mathematics._pool.close()


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="reads /proc")
def test_the_memory_of_what_evaluates_is_bounded(hurried):
    assert math_match("0.5", "2/4") and compare_math("(10^9)!", "5") is None and math_match("1.5", "3/2")
    (worker,) = mathematics._pool.idle
    limits = {
        process: re.search(r"Max address space +(\S+)", Path(f"/proc/{process}/limits").read_text()).group(1)
        for process in session(worker.process.pid)
    }
    assert sorted(limits.pop(process) for process in list(limits) if process != worker.process.pid) == [
        str(math_worker.MEMORY)
    ]
    assert limits == {worker.process.pid: "unlimited"}


def test_too_little_memory_is_no_verdict(monkeypatch):
    """Also where math-verify itself takes it for an answer that it cannot read."""
    notice = math_worker.OutOfMemory()
    logger = logging.getLogger("math_verify")
    logger.addHandler(notice)
    monkeypatch.setattr(logger, "level", logging.DEBUG)

    def exhaust(*args, **kwargs):
        raise MemoryError

    assert math_worker.equal("1/2", "0.5", notice) is True
    monkeypatch.setattr("math_verify.parser.extract_target_from_pred", exhaust)
    assert math_worker.equal("1/2", "0.5", notice) is None
    monkeypatch.undo()
    logger.removeHandler(notice)
    assert math_worker.equal("1/2", "0.5", notice) is True


def test_a_worker_that_cannot_start_is_one_clear_line(monkeypatch, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho ModuleNotFoundError: no module named math_verify\n")
    broken.chmod(0o755)
    monkeypatch.setattr(mathematics, "_pool", mathematics._Pool())
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(UserError, match="no module named math_verify; reinstall math-verify"):
        math_match("1/3", "2/6")


def test_an_answer_that_was_given_up_is_a_question_for_the_judge_that_says_so(hurried):
    sample = make_sample(answer="5", check="math")
    found = read_accuracy(sample, response("Hm.", ENDLESS[0]))
    assert found == Agreement(sample, ENDLESS[0]) and found.given_up
    assert not read_accuracy(sample, response("Hm.", "6")).given_up


def test_a_worker_is_started_before_it_is_needed_and_only_if_it_will_be(monkeypatch):
    monkeypatch.setattr(mathematics, "_pool", mathematics._Pool())
    prepare([make_sample(), make_sample(check="choice", options={"A": "red"}, answer="A")])
    assert mathematics._pool.idle == []
    for _ in range(2):
        prepare([make_sample(), make_sample(check="math", answer="5")])
        assert len(mathematics._pool.idle) == 1
    mathematics._pool.close()


@pytest.fixture
def endless(monkeypatch):
    """9!!! is given up."""
    monkeypatch.setattr(
        "ivgr.rewards.accuracy.compare_math", lambda answer, gold: None if "!" in answer else answer == gold
    )


def mathematical(*answers):
    sample = make_sample("m", answer="5", check="math", kind="single", boxes=())
    return make_query(sample, single=[make_rollout(response("Hm.", answer)) for answer in answers])


def test_training_counts_them_and_says_nothing_where_there_are_none(endless):
    for answers, expected in ((("9!!!", "5", "8!!!", "6"), {"reward/math_given_up": 2.0}), (("5", "6"), {})):
        query = mathematical(*answers)
        doubtful = Rewards().rate([query])
        assert len(doubtful) == len([answer for answer in answers if answer != "5"])
        figures = batch_metrics([query], Archive(), 1.0)
        assert {name: figures[name] for name in figures if "given_up" in name} == expected


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_held_out_figures_have_their_share(endless):
    for answers, expected in ((("9!!!", "5", "6", "6"), 0.25), (("5", "6"), None)):
        query = mathematical(*answers)
        query.groups[0].stream = "textual"
        figures = HeldOutFigures(RuleJudge())
        figures.update([query])
        found = figures.compute()["textual"]
        assert found.get("math_given_up") == expected and found["accuracy"] == 1 / len(answers)


def test_the_filter_counts_them_in_its_rows(endless, tmp_path):
    journal = ResumableJsonl(tmp_path, "pass_rates", {})
    shards = write_shards(tmp_path / "shards", "train", [mathematical().sample], 10)
    query = mathematical("9!!!", "5", "6", "8!!!")
    measure_rates(
        [str(path) for path in shards], 1, journal, lambda samples, seed: [query], RuleJudge(), 1, 0
    )
    assert journal.rows == [{"id": "m", "rate": 0.25, "given_up": 2}]


def test_a_rewrite_that_was_given_up_has_a_reason_of_its_own(endless):
    item = Candidate(make_sample("m", answer="5", check="math"), "The cross is red.", "5", RELATIVE)
    pairs = [(item, response("The cross is red.", answer)) for answer in ("5", "6", "9!!!")]
    assert judge_rewrites(pairs, RuleJudge(), 0.0) == [KEPT, "answer", GIVEN_UP]
    assert judge_rewrites(pairs, RecordingJudge(agrees=True, score=1.0), 0.0) == [KEPT] * 3


def test_it_is_named_where_rewards_are():
    assert ivgr.rewards.math_match is math_match
