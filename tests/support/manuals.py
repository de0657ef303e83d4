"""What a manual has a reader type: its code blocks, written to files and run in a folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r'\A(?:# |""")([\w./]+\.(?:py|yaml))\b')


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)


def commands_of(page: str) -> list[str]:
    lines = "".join(blocks(page, "bash")).replace("\\\n", "").splitlines()
    return [line.partition("  #")[0].strip() for line in lines]


def section(page: str, heading: str) -> str:
    """What stands under a heading of the second level of a page, a path from the root."""
    _, _, rest = (ROOT / page).read_text().partition(f"\n## {heading}\n")
    assert rest, f"{page} has no heading {heading!r}"
    return rest.partition("\n## ")[0]


def write_files(text: str, folder: Path) -> list[str]:
    """Writes each block whose first line names a file; their names."""
    written = []
    for block in blocks(text, "python") + blocks(text, "yaml"):
        if found := NAMED.match(block):
            (folder / found[1]).write_text(block)
            written.append(found[1])
    return written


def type_in(folder: Path, command: str, package: Path = ROOT / "src") -> str:
    """What `command` prints when it is typed in `folder`, where the `ivgr` in the folder `package` is
    installed. It must succeed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(package)}
    run = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{command}\n{run.stdout[-3000:]}\n{run.stderr[-3000:]}"
    return run.stdout
