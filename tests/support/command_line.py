"""The command line in this process, and the configs that ship."""

from pathlib import Path

import pytest

from ivgr.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"


TINY = str(CONFIGS / "tiny.yaml")


def fails(capsys, *args):
    """The one line on stderr of a call that fails with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("ivgr: error: ") and error.count("\n") == 1
    return error


SHIPPED = sorted(path.stem for path in CONFIGS.glob("*vl_*.yaml"))
