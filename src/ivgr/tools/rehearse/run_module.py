"""`python -m ivgr.tools.rehearse.run_module MODULE WORDS`, in a process on the null GPU: what `python -m
MODULE WORDS` does on a real one, without its numbers.

What needs a GPU that computes has its stand-in, and whole numbers are true. Weights are not written, and
weights that were not written are made where they would be read to.
"""

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel

from ivgr.core.errors import UserError
from ivgr.tools.rehearse.host_integers import HostIntegers
from ivgr.tools.rehearse.stand_ins import stand_ins

READ: Any = PreTrainedModel.from_pretrained.__func__


def save_config(self: PreTrainedModel, folder: str | Path, **_: Any) -> None:
    """Has the signature of `PreTrainedModel.save_pretrained`, and writes the configuration alone."""
    self.config.architectures = [type(self).__name__]
    self.config.save_pretrained(folder)


def load_or_make(
    cls: type[PreTrainedModel], folder: str | Path, *rest: Any, dtype: torch.dtype | None = None, **more: Any
) -> Any:
    """`PreTrainedModel.from_pretrained`, for which a configuration alone is enough."""
    if any(Path(folder).glob("*.safetensors")):
        return READ(cls, folder, *rest, dtype=dtype, **more)
    model = cls._from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    model.config._name_or_path = str(folder)
    return model.eval()


class NumberlessTests:
    """A plugin of pytest: a test whose numbers are not what they must be, or are none, has passed all the
    same."""

    @pytest.hookimpl(wrapper=True)
    def pytest_pyfunc_call(self) -> Any:
        try:
            return (yield)
        except (AssertionError, UserError):
            return True
        except SystemExit as stop:  # what `ivgr` makes of a UserError
            if not isinstance(stop.__context__, UserError):
                raise
            return True


def run(module: str, words: list[str]) -> None:
    """Runs `module` as the main program; leaves as it does."""
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    module, *words = sys.argv[1:]
    if module == "pytest":
        with stand_ins(), HostIntegers():
            raise SystemExit(pytest.main(words, [NumberlessTests()]))
    models = (
        (PreTrainedModel, "save_pretrained", save_config),
        (PreTrainedModel, "from_pretrained", classmethod(load_or_make)),
    )
    with stand_ins(models), HostIntegers():
        run(module, words)


if __name__ == "__main__":
    main()
