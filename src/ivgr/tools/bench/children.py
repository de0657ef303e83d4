"""Child processes of which a measurement needs the exit code and the last lines.

In: a command. Out: its exit code, or none if it was stopped, and what it said at the end.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile

LINES = 30


def run_child(
    command: Sequence[str], seconds: float, folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[int | None, list[str]]:
    """Runs `command` in `folder`, in this process's environment unless another is given.

    After `seconds` it is killed with all that it has started, and the exit code is None. Returns the last
    LINES lines of both its outputs that say something, too.
    """
    with TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    return code, [line for line in lines if line.strip()][-LINES:]
