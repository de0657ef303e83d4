"""Demonstrations at a given ratio of grounded to textual ones, as samples to write.

An entry's `reasoning` holds the one text that is to be imitated, under its stream's name;
a sample with several demonstrations has several entries.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from ivgr.core.errors import UserError
from ivgr.core.prompts import GROUNDED, TEXTUAL
from ivgr.core.sample import Sample, read_sample
from ivgr.core.seeding import derive_seed
from ivgr.data.shards import read_shards

Texts = list[tuple[str, str]]
Plan = dict[str, list[dict[str, str]]]


def parse_ratio(ratio: str) -> tuple[int, int]:
    """ "32:3" → (32, 3) in lowest terms; UserError if it is none."""
    grounded, _, textual = ratio.partition(":")
    if not (grounded.isdecimal() and textual.isdecimal() and int(grounded) and int(textual)):
        raise UserError(f"--ratio is {ratio!r}, must be GROUNDED:TEXTUAL, for example 32:3")
    divisor = math.gcd(int(grounded), int(textual))
    return int(grounded) // divisor, int(textual) // divisor


def plan_demonstrations(grounded: Texts, textual: Texts, ratio: tuple[int, int], seed: int) -> Plan:
    """As many demonstrations as exactly `ratio` allows, by sample id, from (id, text) pairs; no
    query has a second textual one before every query that can has its first. UserError if
    not even once the ratio can be had."""
    units = min(len(grounded) // ratio[0], len(textual) // ratio[1])
    if not units:
        raise UserError(
            f"{len(grounded)} grounded and {len(textual)} textual demonstrations do not make "
            f"--ratio {ratio[0]}:{ratio[1]} even once; give a run with more good rollouts or another --ratio"
        )
    plan: Plan = defaultdict(list)
    for stream, texts, share in zip((GROUNDED, TEXTUAL), (grounded, textual), ratio, strict=True):
        for sample_id, text in _shuffle(texts, seed)[: units * share]:
            plan[sample_id].append({stream: text})
    return plan


def _shuffle(texts: Texts, seed: int) -> Texts:
    """Each id's first text before any id's second, else in seeded order."""
    turns: dict[str, int] = defaultdict(int)
    keyed = []
    for sample_id, text in texts:
        keyed.append((turns[sample_id], derive_seed(seed, "balance", sample_id), (sample_id, text)))
        turns[sample_id] += 1
    return [pair for *_, pair in sorted(keyed)]


def attach_reasoning(plan: Plan, shards: list[str]) -> Iterator[Sample]:
    """The planned entries in the order of `shards`; each sample once, one at a time."""
    waiting = dict(plan)
    for entry in read_shards(shards):
        sample = read_sample(entry)
        for reasoning in waiting.pop(sample.id, ()):
            yield replace(sample, reasoning=reasoning)
