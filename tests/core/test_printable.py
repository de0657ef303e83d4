"""Text of others, whatever stands in it, is shown as it is: no markup, no command to the terminal, no
script, in every tool that shows any."""

import ast
import html
import json
import unicodedata
from contextlib import redirect_stderr
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console
from tensorboard.plugin_util import markdown_to_safe_html
from torch import tensor

import ivgr
from ivgr.callbacks.metrics_logger import completions_table
from ivgr.cli.main import main
from ivgr.core import printable as shown
from ivgr.core.errors import UserError
from ivgr.data.shards import write_shards
from ivgr.judge.llm import LLMJudge
from ivgr.launch.notices import show_notices
from ivgr.plotting.data_figures import draw_gallery
from ivgr.plotting.rollout_figures import draw_rollouts, rollouts_table
from ivgr.rewards.archive import Archive
from ivgr.tools.benchmarks.benchmark_runner import BenchmarkRunner
from ivgr.tools.benchmarks.tables import BenchmarkFigure as Score
from ivgr.tools.benchmarks.tables import Column, print_lines, write_tables
from ivgr.tools.inference.ask import print_reply, to_json
from ivgr.tools.inference.modes import Reply
from ivgr.tools.inference.streaming import TokenPrinter
from support.harmless import HARMFUL, harmless
from support.packing import pack
from support.samples import jpeg, make_query, make_rollout, make_sample

MARKUP = "[/x] [link=http://e]y[/link] [red]"
ORDERS = "\x1b[31m\x1b]0;title\x07 \x9b2J \r \x08 \u202eabc\u2069"
SCRIPT = "<script>alert('1')</script> | `a` **b** $\\frac{$ "
NASTY = f"{MARKUP}{ORDERS}{SCRIPT}"
texts = st.text() | st.lists(st.sampled_from([*NASTY, NASTY, "$", "\\", "\n", "\ud800"])).map("".join)
calm = settings(max_examples=60)


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += "\n" * (tag == "br")

    def handle_data(self, data: str) -> None:
        self.text += data


def prints(char: str) -> bool:
    """Neither a control character, a line separator, half a pair, nor what turns the writing around."""
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    controls = unicodedata.category(char) in ("Cc", "Zl", "Zp", "Cs")
    return char in "\n\t" or (not controls and unicodedata.bidirectional(char) not in turns)


@calm
@given(texts)
def test_what_can_be_printed_stays_and_the_rest_is_written_out(text):
    assert shown.printable(text) == "".join(c if prints(c) else ascii(c)[1:-1] for c in text)
    assert shown.printable("é 红 👩‍🚀 \u00a0") == "é 红 👩‍🚀 \u00a0"


@calm
@given(texts, st.integers(2, 60))
def test_a_name_in_a_message_is_one_short_line(text, longest):
    line = shown.in_line(text, longest)
    assert len(line.splitlines()) <= 1 and len(line) <= max(longest, 6 * len(text[: longest + 1]))
    assert len(shown.in_line("x" * 10_000)) == shown.LONGEST


@calm
@given(texts)
def test_html_and_rich_show_the_very_text(text):
    assert html.unescape(shown.as_html(text)) == shown.printable(text)
    assert not Tags(shown.as_html(text)).tags
    assert shown.as_cell(text).plain == shown.printable(text)


@calm
@given(texts)
def test_json_reads_back_what_was_written(text):
    line = shown.as_json({"text": text})
    assert not HARMFUL.search(line) and "\n" not in line
    assert json.loads(line) == {"text": text}


@calm
@given(texts)
def test_a_markdown_cell_is_rendered_as_the_text(text):
    """By TensorBoard's own renderer, which takes tables and sanitises."""
    page = markdown_to_safe_html(f"| a |\n| --- |\n| x{shown.as_markdown(text)}x |")
    found = Tags(page)
    assert {tag for tag, _ in found.tags} <= {"table", "thead", "tbody", "tr", "th", "td", "br"}
    assert [tag for tag, _ in found.tags].count("td") == 1
    assert found.text.split() == ["a", *f"x{shown.printable(text)}x".split()]


@calm
@given(texts)
def test_a_label_of_a_figure_is_no_mathematics(text):
    drawn, mathematical = Figure().text(0, 0, "")._preprocess_math(shown.as_label(text))
    assert not mathematical and drawn == shown.printable(text)


def test_no_other_module_escapes_on_its_own():
    own = {"html", "rich.markup", "rich.text"}
    for path in Path(ivgr.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert path.name == "printable.py" or not own & set(names), path


def test_the_archive(tmp_path, capsys):
    archive = Archive()
    think = f"<think>{NASTY}</think><answer>x</answer>"
    rollout = make_rollout(think, format=1.0, accuracy=1.0, box=0.9, validity=1.0)
    archive.admit([make_query(make_sample(f"id {NASTY}"), grounded=[rollout])])
    state = {"archive": archive.state_dict(), "iteration": 3}
    saved = {"ivgr": state, "pytorch-lightning_version": "2.6.0", "epoch": 0, "global_step": 3}
    torch.save(saved, tmp_path / "a.ckpt")
    main(["archive", "show", str(tmp_path / "a.ckpt")])
    assert "1 queries" in harmless(capsys.readouterr().out, "[/x]", "[red]", "\\x1b[31m")


def test_tables_of_scores(tmp_path, capsys):
    figures = [Score("V*", part, 1.0, 0.0, 2.0, 3) for part in ("", NASTY)]
    columns = [Column(f"model {NASTY}", "text", figures, {})]
    print_lines([["a", NASTY], [NASTY, "1.0 [0.0, 2.0]"]], f"title {NASTY}")
    harmless(capsys.readouterr().out, "[/x]", "<script>", "1.0[0.0,2.0]")
    write_tables(columns, tmp_path)
    page = (tmp_path / "scores.md").read_text()
    assert "1.0 [0.0, 2.0]" in page and not HARMFUL.search(page) and "<script>" not in page
    assert all(line.count("|") == 3 for line in page.splitlines())


def test_progress_bars(monkeypatch):
    console = Console(file=StringIO(), width=500, force_terminal=True, color_system=None)
    monkeypatch.setattr("ivgr.tools.benchmarks.benchmark_runner.Console", lambda: console)
    rows = type("Rows", (), {"total": 0, "read": lambda self, numbers: iter(())})()
    journal = type("Journal", (), {"rows": []})()
    BenchmarkRunner(None, None, "").fill(journal, rows, NASTY)
    assert "[/x] [link=http://e]y[/link] [red]\\x1b[31m" in console.file.getvalue()


def test_a_look_at_shards(tmp_path, capsys):
    sample = make_sample(f"id {NASTY}", question=NASTY, source=NASTY, labels=(NASTY,), images=(jpeg(),))
    sample = type(sample)(**vars(sample) | {"boxes": ((1, 1, 9, 9),)})
    write_shards(tmp_path, "train", [sample], 1)
    for suffix in ("html", "png"):
        main(["inspect", str(tmp_path), "--out", str(tmp_path / f"sheet.{suffix}")])
        harmless(capsys.readouterr().out, "[/x]", "<script>")
    page = Tags(harmless((tmp_path / "sheet.html").read_text()))
    assert "script" not in dict(page.tags) and NASTY[:20] in page.text


@pytest.mark.parametrize("spoken", [True, False])
def test_an_answer(capsys, spoken):
    reply = Reply(NASTY, NASTY, NASTY, notes=[NASTY])
    print_reply(reply, spoken)
    harmless(capsys.readouterr().out, "answer: [/x]", "note: [/x]", "<script>")
    line = harmless(to_json(reply, "text", "tiny", 1.0))
    assert json.loads(line)["answer"] == NASTY


def test_an_answer_while_it_is_written(capsys):
    class Tokenizer:
        def decode(self, tokens, skip_special_tokens):
            return NASTY[: len(tokens)]

    voice = TokenPrinter(Tokenizer())
    for token in range(len(NASTY)):
        voice(None, tensor([token]))
    assert harmless(capsys.readouterr().out) == shown.printable(NASTY)


def test_errors(monkeypatch, capsys):
    def fail(name, words):
        raise UserError(f"sample {NASTY} is wrong")

    monkeypatch.setattr("ivgr.cli.main.run_tool", fail)
    with pytest.raises(SystemExit):
        main(["pack"])
    assert harmless(capsys.readouterr().err, "[/x]").startswith("ivgr: error: sample [/x]")


def test_what_a_server_said(monkeypatch):
    judge = LLMJudge("http://localhost:9/v1", "m", cache=None, patience=0.0)
    judge.client.last_failure = NASTY
    said = StringIO()
    show_notices()
    with redirect_stderr(said), pytest.raises(UserError):
        judge._wait_until_few_are_missing([None], lambda seconds: None)
    harmless(said.getvalue(), "[/x]")


def test_what_pack_says(tmp_path, capsys):
    rows = [{"id": NASTY, "question": "q?", "answer": "a", "image": f"{NASTY}.jpg", "kind": NASTY}] * 2
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert pack(tmp_path / "rows.jsonl", tmp_path / "out") == 1
    harmless(capsys.readouterr().out)


def test_rollouts_side_by_side_and_on_the_board():
    query = make_query(
        make_sample(question=NASTY, answer=NASTY, images=(jpeg(),)), grounded=[make_rollout(NASTY)]
    )
    assert {tag for tag, _ in Tags(harmless(rollouts_table(query))).tags} <= {
        "table", "tr", "th", "td", "br", "small",
    }  # fmt: skip
    page = Tags(markdown_to_safe_html(harmless(completions_table([query]))))
    assert page.text.count("<script>alert('1')</script>") == 4 and "script" not in dict(page.tags)


def test_figures():
    """Drawn, not only made: it is then that matplotlib parses."""
    sample = make_sample(question=NASTY, answer="$\\frac{$", labels=("$\\x$",), images=(jpeg(),))
    query = make_query(sample, grounded=[make_rollout(NASTY)])
    weights = {"grounded": {"format": 1.0}}
    for figure in (draw_gallery([sample], 1), draw_rollouts(query, weights)):
        figure.savefig(StringIO(), format="svg")
