"""What VLLMEngine relies on in vLLM, read from vLLM's source without importing it.

    python tests/vllm_signatures.py FOLDER > tests/vllm_signatures.json

FOLDER holds the package `vllm` beside its dist-info: a site-packages, or an unzipped wheel.
A signature is a list of [name, kind, has a default], as `inspect.Parameter` names kinds.
"""

import ast
import importlib.metadata
import inspect
import json
import sys
from pathlib import Path

SIGNATURES = Path(__file__).with_name("vllm_signatures.json")
METHODS = {
    "entrypoints/llm.py": {
        "LLM": (
            "__init__",
            "generate",
            "apply_model",
            "collective_rpc",
            "sleep",
            "wake_up",
            "reset_mm_cache",
            "reset_prefix_cache",
        )
    },
    "v1/engine/llm_engine.py": {"LLMEngine": ("abort_request", "is_sleeping", "reset_encoder_cache")},
    "v1/worker/gpu_worker.py": {"Worker": ("sleep", "wake_up")},
    "model_executor/model_loader/dummy_loader.py": {"DummyModelLoader": ("load_weights",)},
    "outputs.py": {"RequestOutput": ("__init__",)},
    "model_executor/models/qwen2_vl.py": {"Qwen2VLForConditionalGeneration": ("load_weights",)},
    "model_executor/models/qwen3_vl.py": {"Qwen3VLForConditionalGeneration": ("load_weights",)},
}
FIELDS = {
    "sampling_params.py": ("SamplingParams",),
    "engine/arg_utils.py": ("EngineArgs",),
    "outputs.py": ("CompletionOutput",),
    "logprobs.py": ("FlatLogprobs",),
    "inputs/llm.py": ("_PromptOptions", "TokensPrompt"),
}
MAPPERS = {
    "model_executor/models/qwen2_vl.py": ("Qwen2VLForConditionalGeneration", "Qwen2VisionTransformer"),
    "model_executor/models/qwen2.py": ("Qwen2Model",),
    "model_executor/models/qwen3_vl.py": ("Qwen3VLForConditionalGeneration", "Qwen3_VisionTransformer"),
}

SWITCHES = ("VLLM_ENABLE_V1_MULTIPROCESSING",)


def read_signatures(folder: Path) -> dict:
    package, found = folder / "vllm", {"version": _version(folder), "signatures": {}, "mappers": {}}
    for file, classes in METHODS.items():
        for name, methods in classes.items():
            for method in methods:
                definition = _find(_class(package / file, name).body, ast.FunctionDef, method)
                found["signatures"][f"{name}.{method}"] = _parameters(definition.args)
    for file, classes in FIELDS.items():
        for name in classes:
            found["signatures"][name] = _fields(_class(package / file, name))
    for file, classes in MAPPERS.items():
        for name in classes:
            found["mappers"][name] = _mapper(_class(package / file, name))
    tree = ast.parse((package / "config/model.py").read_text())
    found["logprobs_modes"] = sorted(ast.literal_eval(_assigned(tree.body, "LogprobsMode").slice))
    found["environment"] = [name for name in map(_name, _annotated(package / "envs.py")) if name in SWITCHES]
    return found


def _version(folder: Path) -> str:
    (metadata,) = folder.glob("vllm-*.dist-info/METADATA")
    return next(line.split()[1] for line in metadata.read_text().splitlines() if line.startswith("Version:"))


def _class(path: Path, name: str) -> ast.ClassDef:
    return _find(ast.parse(path.read_text()).body, ast.ClassDef, name)


def _find(body: list, kind: type, name: str):
    return [node for node in body if isinstance(node, kind) and node.name == name][-1]


def _annotated(path: Path) -> list[ast.AnnAssign]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.AnnAssign)]


def _name(node: ast.AnnAssign) -> str:
    return ast.unparse(node.target)


def _assigned(body: list, name: str) -> ast.expr:
    return next(n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)


def _parameters(args: ast.arguments) -> list[list]:
    plain = [*args.posonlyargs, *args.args]
    defaults = [False] * (len(plain) - len(args.defaults)) + [True] * len(args.defaults)
    rows = [[a.arg, "POSITIONAL_OR_KEYWORD", d] for a, d in zip(plain, defaults, strict=True)]
    rows += [[args.vararg.arg, "VAR_POSITIONAL", False]] if args.vararg else []
    for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        rows.append([arg.arg, "KEYWORD_ONLY", default is not None])
    return rows + ([[args.kwarg.arg, "VAR_KEYWORD", False]] if args.kwarg else [])


def _fields(definition: ast.ClassDef) -> list[list]:
    """Of a dataclass, msgspec struct or TypedDict: given by keyword."""
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    fields = [field for field in fields if "ClassVar" not in ast.unparse(field.annotation)]
    return [
        [_name(f), "KEYWORD_ONLY", f.value is not None or "NotRequired" in ast.unparse(f.annotation)]
        for f in fields
    ]


def _mapper(definition: ast.ClassDef) -> dict[str, dict]:
    call = _assigned(definition.body, "hf_to_vllm_mapper")
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}


def installed_signatures() -> dict | None:
    """Of the vllm that is installed, without importing it."""
    try:
        folder = Path(importlib.metadata.distribution("vllm").locate_file(""))
    except importlib.metadata.PackageNotFoundError:
        return None
    return json.loads(json.dumps(read_signatures(folder)))


def signature_of(rows: list[list]) -> inspect.Signature:
    """The `inspect.Signature` of a list as `read_signatures` makes."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name, getattr(inspect.Parameter, kind), **({"default": None} if default else {})
            )
            for name, kind, default in rows
        ]
    )


def write(found: dict) -> str:
    """JSON with a line for each signature."""
    lines = [f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in found["signatures"].items()]
    rest = json.dumps({name: value for name, value in found.items() if name != "signatures"}, indent=1)
    return rest[:-2] + ',\n "signatures": {\n  ' + ",\n  ".join(lines) + "\n }\n}"


if __name__ == "__main__":
    print(write(read_signatures(Path(sys.argv[1]))))
