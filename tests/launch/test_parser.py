"""The parser of settings: what a word on the command line means, however deep the class that takes it."""

import pytest

from ivgr.launch.parser import Parser


class Judge:
    def __init__(self, cache: str | None = "a", names: list[str | None] | None = None) -> None: ...


class Scorer:
    def __init__(self, judge: Judge, cache: str | None = "b") -> None: ...


@pytest.fixture
def parse():
    parser = Parser()
    parser.add_subclass_arguments(Scorer, "scorer")
    parser.add_argument("--cache", type=str | None, default="c")
    words = [f"--scorer={__name__}.Scorer", f"--scorer.judge={__name__}.Judge"]
    return lambda *more: parser.parse_args([*words, *more])


@pytest.mark.parametrize("key", ["cache", "scorer.cache", "scorer.init_args.cache", "scorer.judge.cache"])
@pytest.mark.parametrize("word", ["null", "~", "None"])
def test_null_is_null_at_any_depth(parse, key, word):
    found = parse(f"--{key}", word)
    whole = key.replace("init_args.", "").replace(".", ".init_args.")
    assert found[whole] is None


def test_null_in_a_list_is_null_at_any_depth(parse):
    found = parse("--scorer.judge.names", "[x, null]")
    assert found["scorer.init_args.judge.init_args.names"] == ["x", None]


@pytest.mark.parametrize("word", ["007", "1_000", "1e3", "true", "2026-01-01", "Nones", "none of it"])
def test_other_words_stay_text_at_any_depth(parse, word):
    for key in ("cache", "scorer.cache", "scorer.judge.cache"):
        assert parse(f"--{key}", word)[key.replace(".", ".init_args.")] == word
