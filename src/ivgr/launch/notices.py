"""The notices of the library while a command runs. They go to the logger "ivgr", which shows them in the
terminal unchanged."""

import logging
import sys


class NoticeHandler(logging.Handler):
    """Notices go to stdout, warnings to stderr, whatever these are by then."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        print(record.getMessage(), file=stream, flush=True)


def show_notices() -> None:
    """Shows notices from now on in this process; a second call changes nothing."""
    logger = logging.getLogger("ivgr")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, NoticeHandler) for handler in logger.handlers):
        logger.addHandler(NoticeHandler())
