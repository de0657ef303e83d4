"""`ivgr evaluate`: models on benchmarks, in several modes, side by side.

It leaves OUT/MODEL/MODE/BENCHMARK.jsonl (one line per row), BENCHMARK.scores.json and, with --export,
predictions for VLMEvalKit, and OUT/scores.csv and scores.md over all that lies in OUT. A run is one
folder OUT/MODEL/MODE.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from ivgr.core.atomic_files import write_json
from ivgr.core.errors import UserError
from ivgr.core.printable import printable
from ivgr.core.prompts import Prompts
from ivgr.core.readers import read_json
from ivgr.core.resumable_jsonl import ResumableJsonl
from ivgr.core.sample import Sample
from ivgr.core.settings import Dtype, PositiveInt, checked
from ivgr.data.encode import QueryEncoder
from ivgr.judge import Judge
from ivgr.models.patch_embed import use_linear_patches
from ivgr.rollout.sampling import SamplingConfig
from ivgr.rollout.transformers_engine import TransformersEngine
from ivgr.tools.benchmarks.batch_size import MOST, choose_batch
from ivgr.tools.benchmarks.benchmark_runner import BenchmarkRunner
from ivgr.tools.benchmarks.benchmarks import BENCHMARKS, find_benchmark
from ivgr.tools.benchmarks.export_predictions import check_form, export_rows, name_file
from ivgr.tools.benchmarks.find_files import find_files, open_rows
from ivgr.tools.benchmarks.rows import RowFile
from ivgr.tools.benchmarks.tables import (
    BenchmarkFigure,
    Column,
    figures_of,
    lines_of,
    notes_of,
    print_lines,
    write_tables,
)
from ivgr.tools.inference.crops import Cropping
from ivgr.tools.inference.load_policy import load_policy, saved_dtype
from ivgr.tools.inference.mode_names import LAST, MODES, Mode
from ivgr.tools.inference.modes import Reply, respond

SCORES = ".scores.json"
RESCORE = "remove it and let `ivgr evaluate` write it again"


@dataclass(frozen=True)
class Settings:
    """The settings of a journal, apart from model, mode and benchmark. dtype None: as the model is saved;
    batch None: by the free memory."""

    prompts: Prompts
    judge: Judge | None
    openly: bool
    max_new_tokens: int
    max_prompt_tokens: int
    max_pixels: int | None
    dtype: Dtype | None
    batch: int | None
    cropping: Cropping

    def saved(self, mode: Mode) -> dict:
        """Returns the settings that matter in `mode`, as JSON."""
        judge = type(self.judge).__name__ if self.judge else None
        cropping = asdict(self.cropping) if mode == "tool" else None
        return vars(self) | {"prompts": asdict(self.prompts), "judge": judge, "cropping": cropping}


@checked("evaluate: --")
def evaluate(
    benchmark: list[str] = [],
    data: Path | None = None,
    model: list[str] = ["tiny"],
    mode: list[str] = ["text"],
    out: Path = Path("runs/eval"),
    judge: Judge | None = None,
    openly: bool = False,
    prompts: Prompts = Prompts(),
    max_new_tokens: PositiveInt = 1024,
    max_prompt_tokens: PositiveInt = 32768,
    max_pixels: PositiveInt | None = None,
    dtype: Dtype | None = None,
    batch: PositiveInt | None = None,
    cropping: Cropping = Cropping(),
    export: str | None = None,
) -> None:
    """Score models on benchmarks, from files that you have.

    One or several of each, in one or several modes, side by side. A call that was
    interrupted goes on where it stopped, and ends with the same files.

    Args:
        benchmark: Names, such as vstar hrbench4k pope; a wrong one lists them all.
        data: A benchmark's .tsv (VLMEvalKit) or .parquet, or a folder with such, called as usual.
        model: HF directories, hub ids or "tiny".
        mode: "text", "grounded", "tool": as in `ivgr ask`.
        out: Folder for replies and tables.
        judge: Decides where no rule finds an answer; without one that is wrong.
        openly: Ask without listing the options; the answer is matched to their texts.
        prompts: Instructions of the modes.
        max_new_tokens: Longest reply.
        max_prompt_tokens: Longest prompt, images and crops included; a row with a longer one counts as
            wrong, one with only too many crops is answered without them.
        max_pixels: The model sees larger images and crops shrunk to this; default: as its processor says.
        dtype: Weight dtype; default: the one that the model is saved in.
        batch: Rows asked and saved together; default: as many as the free memory holds, up to 64.
        cropping: How boxes become crops in tool mode.
        export: Also write predictions as VLMEvalKit stores them, "tsv" or "xlsx".
    """
    if not benchmark or data is None:
        raise UserError(f"evaluate: --benchmark (of {', '.join(BENCHMARKS)}) and --data are needed")
    check_modes(mode)
    if export:
        check_form(export)
    labels = label_models(model)
    if data.is_file() and len(set(benchmark)) > 1:
        raise UserError(f"evaluate --data: {data} is one file, for one --benchmark; give their folder")
    files = {name: find_files(data, find_benchmark(name)) for name in dict.fromkeys(benchmark)}
    rows = {name: open_rows(paths, BENCHMARKS[name]) for name, paths in files.items()}
    settings = Settings(
        prompts, judge, openly, max_new_tokens, max_prompt_tokens, max_pixels, dtype, batch, cropping
    )
    for label, source in labels.items():
        own = replace(settings, dtype=dtype or saved_dtype("evaluate", source))
        policy = Policy(source, own)
        for one in cast(list[Mode], list(dict.fromkeys(mode))):
            for name, file in rows.items():
                folder = out / label / one
                saved = {"model": source, "data": list(map(str, files[name])), "rows": file.total}
                journal = ResumableJsonl(folder, name, saved | own.saved(one))
                examine(policy, one, name, file, journal)
                summarise(journal, folder, name)
                if export:
                    path = folder / name_file(label, BENCHMARKS[name], export)
                    export_rows(journal.rows, file.columns(), path)
    columns = read_columns(out)
    write_tables(columns, out)
    print_columns(columns, out)


def check_modes(modes: list[str]) -> None:
    for mode in modes:
        if mode not in MODES:
            raise UserError(f"evaluate --mode is {mode!r}, must be among {', '.join(MODES)}")


def label_models(models: list[str]) -> dict[str, str]:
    """Models by the last part of their path, which must tell them apart."""
    labels = {Path(model).name: model for model in models}
    if len(labels) < len(set(models)):
        raise UserError("evaluate --model: two of the folders have the same name; rename one")
    return labels


class Policy:
    """A model that is loaded when it is first needed, on a GPU if there is one."""

    def __init__(self, source: str, settings: Settings) -> None:
        self.source = source
        self.settings = settings

    @torch.inference_mode()
    def __call__(self, samples: list[Sample], mode: Mode) -> list[Reply]:
        return respond(*self.loaded, samples, mode, self.settings.cropping)

    @cached_property
    def loaded(self) -> tuple[PreTrainedModel, QueryEncoder, TransformersEngine]:
        settings = self.settings
        model, encoder = load_policy(
            "evaluate",
            self.source,
            settings.dtype,
            settings.prompts,
            settings.max_prompt_tokens,
            settings.max_pixels,
        )
        use_linear_patches(model)
        most = settings.batch or MOST
        sampling = SamplingConfig(max_new_tokens=settings.max_new_tokens)
        return model, encoder, TransformersEngine(sampling, batch_queries=most)

    def batch(self, mode: Mode) -> int:
        """Rows to ask together, in `mode`."""
        if self.settings.batch is not None:
            return self.settings.batch
        model, encoder, _ = self.loaded
        limits = self.settings.max_new_tokens, self.settings.max_prompt_tokens
        return choose_batch(model, encoder.processor, mode, *limits)


def examine(policy: Policy, mode: Mode, name: str, file: RowFile, journal: ResumableJsonl) -> None:
    """Fills `journal` and says how fast."""
    settings, before = policy.settings, len(journal.rows)
    label = f"{BENCHMARKS[name].title} · {Path(policy.source).name} · {mode}"
    if before == file.total:
        print(f"{printable(label)}: was done before")
        return
    examination = BenchmarkRunner(
        BENCHMARKS[name],
        partial(policy, mode=mode),
        settings.prompts.instruction(LAST[mode]),
        settings.judge,
        policy.batch(mode),
        settings.openly,
    )
    seconds = examination.fill(journal, file, label)
    done = len(journal.rows) - before
    print(f"{printable(label)}: {done} rows in {seconds:.1f} s, {examination.batch} together")


def summarise(journal: ResumableJsonl, folder: Path, name: str) -> None:
    """Writes BENCHMARK.scores.json."""
    figures = [asdict(figure) for figure in figures_of(journal.rows, name, folder.name != "text")]
    report = {"notes": notes_of(journal.rows, cast(Mode, folder.name)), "figures": figures}
    write_json(folder / f"{name}{SCORES}", report)


def read_columns(out: Path) -> list[Column]:
    """Every run in `out` that has scores, by model and then by mode."""
    columns = []
    folders = {path.parent for path in out.glob(f"*/*/*{SCORES}") if path.parent.name in MODES}
    for folder in sorted(folders, key=lambda folder: (folder.parent.name, MODES.index(folder.name))):
        found = {path.name.removesuffix(SCORES): path for path in folder.glob(f"*{SCORES}")}
        reports = {
            name: read_json(found[name], RESCORE, _read_report) for name in BENCHMARKS if name in found
        }
        figures = [figure for own, _ in reports.values() for figure in own]
        notes = {BENCHMARKS[name].title: own for name, (_, own) in reports.items()}
        columns.append(Column(folder.parent.name, folder.name, figures, notes))
    return columns


def _read_report(report: dict) -> tuple[list[BenchmarkFigure], dict]:
    return [BenchmarkFigure(**figure) for figure in report["figures"]], dict(report["notes"])


def print_columns(columns: list[Column], out: Path) -> None:
    print_lines(lines_of(columns), "accuracy in percent, with 95 % intervals")
    for column in columns:
        for title, notes in column.notes.items():
            odd = [f"{notes[key]} {said}" for key, said in ODD.items() if notes.get(key)]
            if odd:
                print(f"{title} · {printable(column.name)}: of {notes['rows']} replies {', '.join(odd)}")
    print(f"{out / 'scores.md'}, {out / 'scores.csv'}")


ODD = {
    "without_block": "had no answer block (what follows the reasoning, or all, was scored)",
    "unjudged": "got no verdict of the judge (left out)",
    "without_crops": "looked at no crop (no box, or too long a prompt)",
    "rejected": "are to rows that could not be asked (wrong)",
    "given_up": "hold mathematics that took too long to compare (not equal)",
}
