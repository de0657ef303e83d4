"""What callbacks read of a module is written down in one place."""

import ast
from pathlib import Path

import lightning as L
import pytest

import ivgr
from ivgr.callbacks import protocol
from ivgr.callbacks.protocol import AnsweringModule, ColdStartModule, RLModule, TrainedModule
from ivgr.toy.rule_judge import RuleJudge
from ivgr.trainer.rl_module import IVGR
from ivgr.trainer.sft_module import SFT

ROOT = Path(ivgr.__file__).parent
TOOLS = ("tools/benchmarks/benchmark_callback.py", "tools/probes/probe_callback.py")
FILES = sorted(path for path in (ROOT / "callbacks").glob("*.py") if path.name != "protocol.py")
FILES += [ROOT / path for path in TOOLS]


def members(one: type) -> set[str]:
    """What a protocol names, and those that it stands on."""
    bases = [base for base in one.__mro__ if base.__module__ == protocol.__name__]
    return {name for base in bases for name in (*base.__annotations__, *vars(base)) if name[0] != "_"}


def uses_of(path: Path) -> list[tuple[int, str, str]]:
    """(line, annotation, attribute) of every `module.ATTRIBUTE` in a function with such an argument."""
    found = []
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        typed = [a.annotation for a in function.args.args if a.arg == "module"]
        for annotation in typed:
            assert annotation is not None, f"{path}:{function.lineno}: `module` has no type"
            own = ast.unparse(annotation)
            found += [
                (node.lineno, own, node.attr)
                for node in ast.walk(function)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "module"
            ]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_callback_reads_what_its_protocol_names_and_nothing_else(path):
    lightning = set(dir(L.LightningModule))
    for line, annotation, attribute in uses_of(path):
        types = [getattr(protocol, name, None) for name in annotation.split(" | ")]
        allowed = set.union(*(members(one) if one else set() for one in types)) | lightning
        assert attribute in allowed, f"{path}:{line}: {attribute} is not in {annotation}"


def test_the_uses_are_found():
    logger = ROOT / "callbacks" / "metrics_logger.py"
    assert {"iteration", "metrics"} <= {name for _, _, name in uses_of(logger)}
    assert len({name for path in FILES for _, _, name in uses_of(path)}) > 12


def test_both_kinds_of_training_keep_to_their_protocols():
    rl, sft = IVGR(judge=RuleJudge()), SFT("tiny")
    assert isinstance(rl, AnsweringModule) and isinstance(sft, AnsweringModule)
    for module, protocols in ((rl, (RLModule,)), (sft, (TrainedModule, ColdStartModule))):
        for name in set.union(*map(members, protocols)):
            assert hasattr(type(module), name) or hasattr(module, name), name


def test_a_module_that_is_not_ours_keeps_to_none():
    assert not isinstance(L.LightningModule(), AnsweringModule)
