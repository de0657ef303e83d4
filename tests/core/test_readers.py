"""Reading what a user gives: each kind of file, and each way in which it can be another."""

import json
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError
from ivgr.core.readers import measure_yaml, read_json, read_json_lines, read_text, read_yaml
from ivgr.data.shard_index import read_sizes

BOMB = "a0: &a0 [x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00", "no text in UTF-8"), ("Größe: 1".encode("latin-1"), "no text in UTF-8")],
)
@pytest.mark.parametrize("read", [read_text, read_yaml, lambda path: read_json(path, "mend it")])
def test_bytes_that_are_no_text(path, read, content, said):
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: is {said}"):
        read(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("none", "no file"), (".", "a folder"), ("pipe", "no file")):
        with pytest.raises(UserError, match=f"is {said}; mend the path"):
            read_text(tmp_path / name)
    with pytest.raises(UserError, match="is no file"):  # it has no end
        read_text(type(tmp_path)("/dev/zero"))


def test_a_file_that_is_too_long_is_not_read(path):
    path.write_text("12345")
    assert read_text(path, most=5) == "12345"
    with pytest.raises(UserError, match="has 5 bytes, at most 4 are read"):
        read_text(path, most=4)


def test_a_file_that_the_system_refuses(path, monkeypatch):
    path.write_text("1")

    def refuse(*_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(path), "read_bytes", refuse)
    with pytest.raises(UserError, match="cannot be read .Permission denied"):
        read_text(path)


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, '{"a": "x"}', "[1]", "null"])
def test_json_of_another_shape(path, content):
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{path}: not as it was written .*; remove it$"):
        read_json(path, "remove it", lambda found: found["a"] + 1)


def test_json_lines(path):
    path.write_text('{"a": 1}\n{"a": "\u2028"}\n')
    assert read_json_lines(path, "mend it", ("a",)) == [{"a": 1}, {"a": "\u2028"}]
    for content, said in (
        ("{", "line 2 is no JSON"),
        ("[]", "line 2 is no JSON object"),
        ("{}", "has no 'a'"),
    ):
        path.write_text('{"a": 1}\n' + content + "\n")
        with pytest.raises(UserError, match=said):
            read_json_lines(path, "mend it", ("a",))


def test_a_line_that_was_cut_off_is_left_out_where_that_is_allowed(path):
    path.write_text('{"a": 1}\n{"a": ')
    assert read_json_lines(path, "mend it", whole=True) == [{"a": 1}]
    with pytest.raises(UserError, match="line 2 is no JSON"):
        read_json_lines(path, "mend it")


def test_aliases_that_amount_to_gigabytes_are_not_written_out(path):
    path.write_text(BOMB)
    with pytest.raises(UserError, match="aliases amount to more than 1,048,576 characters"):
        read_yaml(path)


@pytest.mark.parametrize("text", ["[" * 60 + "]" * 60, "a: &a [*a]"])
def test_yaml_without_an_end(path, text):
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path}: no YAML"):
        read_yaml(path)


def test_aliases_that_amount_to_little_are_read(path):
    path.write_text("a: &a {x: 1}\nb: [*a, *a]\n")
    assert read_yaml(path) == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}]}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(values)
def test_whatever_yaml_writes_is_measured(value):
    measure_yaml(yaml.safe_dump(value))


GOOD = {"samples": 2, "paired": 1, "single": 1, "bytes": 9, "sha256": "ab"}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "{}",
        '{"shards": []}',
        '{"shards": {"a.tar": 3}}',
        '{"shards": {"a.tar": {"samples": 1}}}',
    ]
    + [json.dumps({"shards": {"a.tar": GOOD | {"samples": wrong}}}) for wrong in ("2", -1, 2.0, True, None)],
)
def test_sizes_of_another_shape(tmp_path, content):
    (tmp_path / "sizes.json").write_text(content)
    with pytest.raises(UserError, match="sizes.json: not as it was written .*pack the shards again"):
        read_sizes(tmp_path)
