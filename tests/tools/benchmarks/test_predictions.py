"""Predictions for VLMEvalKit: every benchmark's own columns, and the file's name."""

import csv

import pytest

from ivgr.tools.benchmarks.benchmarks import BENCHMARKS
from ivgr.tools.benchmarks.export_predictions import export_rows, name_file
from ivgr.tools.benchmarks.find_files import open_rows
from support.benchmark_files import ASK, BASE64, TSV, write_tsv


@pytest.mark.parametrize("name", BENCHMARKS)
def test_predictions_have_the_columns_of_the_file(tmp_path, name):
    rows = [{"index": str(7 + n), "question": ASK, **TSV[name][0], "image": BASE64[n % 4]} for n in range(3)]
    file = open_rows([write_tsv(tmp_path / "x.tsv", rows)], BENCHMARKS[name])
    assert list(file.columns()) == [{k: v for k, v in row.items() if v and k != "image"} for row in rows]
    path = tmp_path / name_file("my_model", BENCHMARKS[name], "tsv")
    export_rows([{"index": row["index"], "answer": "12"} for row in rows], file.columns(), path)
    with path.open(newline="") as written:
        found = list(csv.DictReader(written, delimiter="\t"))
    kept = [column for column in rows[0] if rows[0][column] and column != "image"]
    assert [{**row} for row in found] == [
        {**{column: row[column] for column in kept}, "prediction": "12"} for row in rows
    ]


def test_a_file_is_called_as_vlmevalkit_looks_for_it():
    """`vlmutil eval` takes what stands behind an underscore, if it knows a data set of that name."""
    names = [name_file("my_model", benchmark, "xlsx") for benchmark in BENCHMARKS.values()]
    assert names[0] == "my_model_VStarBench.xlsx" and len(set(names)) == len(BENCHMARKS)
