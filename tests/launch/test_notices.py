"""What the library logs, in the terminal of a command."""

import logging
import sys

import pytest

from ivgr.launch.notices import NoticeHandler, show_notices


@pytest.fixture
def logger():
    """The library's, as it was once the test is over."""
    logger = logging.getLogger("ivgr")
    handlers, level = logger.handlers[:], logger.level
    logger.handlers = [handler for handler in handlers if not isinstance(handler, NoticeHandler)]
    yield logger
    logger.handlers = handlers
    logger.setLevel(level)


def test_notices_go_to_stdout_and_warnings_to_stderr_once(logger, capsys):
    show_notices()
    show_notices()
    logger.info("step %d  loss %.3f", 100, 0.25)
    logger.warning("memory ran out")
    printed = capsys.readouterr()
    assert printed.out == "step 100  loss 0.250\n"
    assert printed.err == "memory ran out\n"


def test_a_user_of_the_library_may_silence_them(logger, capsys):
    show_notices()
    logger.setLevel(logging.ERROR)
    logger.warning("memory ran out")
    assert capsys.readouterr().err == ""


def test_they_go_where_stdout_is_by_then(logger, monkeypatch, tmp_path):
    show_notices()
    with (tmp_path / "out.txt").open("w+") as file:
        monkeypatch.setattr(sys, "stdout", file)
        logger.info("later")
        file.seek(0)
        assert file.read() == "later\n"
