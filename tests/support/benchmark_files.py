"""Benchmark files as the field hands them out."""

import base64
import csv

from support.samples import jpeg

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (9, 9, 9)]


PICTURES = [jpeg(color) for color in COLORS]


BASE64 = [base64.b64encode(picture).decode() for picture in PICTURES]


ABCD = {"A": "red", "B": "green", "C": "blue", "D": "black"}


LISTED = ["(A) red", "(B) green", "(C) blue", "(D) black", "(E) none of these"]


ABCDE = {**ABCD, "E": "none of these"}


BOX = [10, 20, 30, 40]


# By benchmark: columns as in VLMEvalKit's TSV; gold, options, groups, boxes that must come out.
TSV = {
    "vstar": ({**ABCD, "answer": "C", "category": "direct_attributes"},
              ("C", ABCD, {"category": "direct_attributes"}, ())),
    "hrbench4k": ({"answer": "B", **ABCD, "category": "single", "cycle_category": "2"},
                  ("B", ABCD, {"category": "single", "cycle_category": "2"}, ())),
    "hrbench8k": ({"answer": "B", **ABCD, "category": "cross", "cycle_category": "0"},
                  ("B", ABCD, {"category": "cross", "cycle_category": "0"}, ())),
    "mme-realworld-lite": (
        {"multi-choice options": repr(LISTED), "answer": "E", "category": "Perception/Remote Sensing",
         "l2-category": "color"},
        ("E", ABCDE, {"category": "Perception/Remote Sensing", "l2-category": "color"}, ())),
    "pope": ({"answer": "Yes", "category": "adversarial,popular,random"},
             ("Yes", {}, {"category": "adversarial,popular,random"}, ())),
    "realworldqa": ({"A": "Yes", "B": "No", "C": "", "answer": "A"}, ("A", {"A": "Yes", "B": "No"}, {}, ())),
    "cv-bench-2d": ({"A": "3", "B": "2", "answer": "B", "task": "Count", "source": "ADE20K", "type": "2D",
                     "prompt": "How many? Select from the following choices."},
                    ("B", {"A": "3", "B": "2"}, {"task": "Count", "source": "ADE20K"}, ())),
    "cv-bench-3d": ({"A": "box", "B": "cat", "answer": "A", "task": "Depth", "type": "3D"},
                    ("A", {"A": "box", "B": "cat"}, {"task": "Depth"}, ())),
    "treebench": ({"multi-choice options": "A. red\nB. green\nC. blue\nD. black", "answer": "D",
                   "category": "Perception/Attributes", "target_instances": str([BOX, BOX])},
                  ("D", ABCD, {"category": "Perception/Attributes"}, (tuple(BOX), tuple(BOX)))),
    "chartqa": ({"answer": "14.5", "split": "test_human"}, ("14.5", {}, {"split": "test_human"}, ())),
    "ai2d": ({**ABCD, "answer": "A", "category": "foodWeb"}, ("A", ABCD, {"category": "foodWeb"}, ())),
    "mmstar": ({**ABCD, "answer": "C", "category": "math", "l2_category": "geometry"},
               ("C", ABCD, {"category": "math", "l2-category": "geometry"}, ())),
    "mathvista": ({"answer": "1.2", "task": "figure question answering", "choices": ""},
                  ("1.2", {}, {"task": "figure question answering"}, ())),
    "refcoco": ({"answer": "[0.1, 0.2, 0.3, 0.5]", "width": "100", "height": "200",
                 "category": "RefCOCO+ test A"},
                ("[10.0, 40.0, 30.0, 100.0] of 100.0 x 200.0", {}, {"split": "RefCOCO+_testA"}, ())),
    "mmvp": ({"A": "Open", "B": "Closed", "answer": "B"}, ("B", {"A": "Open", "B": "Closed"}, {}, ())),
    "blink": ({**ABCD, "answer": "C", "category": "Counting"}, ("C", ABCD, {"category": "Counting"}, ())),
    "zoombench": ({"answer": "a red sign", "category": "text"}, ("a red sign", {}, {"category": "text"}, ())),
    "visualprobe": ({"answer": "12", "category": "hard"}, ("12", {}, {"category": "hard"}, ())),
}  # fmt: skip


ASK = "What color is it?"


def write_tsv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path
