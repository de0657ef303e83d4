import io
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.query import Query, Rollout
from ivgr.rewards.archive import Archive, read_key
from support.samples import make_query, make_rollout, make_sample, response

TAU = 0.3
rewards = st.sampled_from([0.0, 0.2, 0.3, 0.31, 0.5, 0.5, 0.8, 1.0])
iterations = st.lists(st.dictionaries(st.sampled_from("xyz"), st.lists(rewards, max_size=3)), max_size=6)


def scored(think: str, box: float, format: float = 1.0, accuracy: float = 1.0) -> Rollout:
    return make_rollout(response(think), format=format, accuracy=accuracy, box=box, validity=1.0)


def query(sample_id: str, *rollouts: Rollout) -> Query:
    return make_query(make_sample(sample_id), grounded=rollouts)


def references(archive: Archive, names: str = "xyz") -> dict[str, str | None]:
    return {name: archive.reference(query(name)) for name in names}


def filled(**thinks: tuple[str, float]) -> Archive:
    archive = Archive(TAU)
    archive.admit([query(name, scored(*entry)) for name, entry in thinks.items()])
    return archive


def admit_all(archive: Archive, history: list[dict[str, list[float]]]) -> list[dict[str, str | None]]:
    """Think texts read "iteration-rollout"; the references after each iteration."""
    after = []
    for i, found in enumerate(history):
        archive.admit(
            [query(n, *(scored(f"{i}-{j}", r) for j, r in enumerate(rs))) for n, rs in found.items()]
        )
        after.append(references(archive))
    return after


def first_best(history: list[dict[str, list[float]]], name: str) -> str | None:
    seen = [(r, f"{i}-{j}") for i, found in enumerate(history) for j, r in enumerate(found.get(name, []))]
    best = max((r for r, _ in seen if r > TAU), default=None)
    return next((think for r, think in seen if r == best), None)


def test_an_empty_archive_has_no_reference():
    assert references(Archive()) == {"x": None, "y": None, "z": None} and len(Archive()) == 0


@pytest.mark.parametrize("format", [0.0, 1.0])
@pytest.mark.parametrize("accuracy", [0.0, 1.0])
@pytest.mark.parametrize("box", [0.0, TAU, math.nextafter(TAU, 1), 1.0])
def test_a_rollout_qualifies_by_form_answer_and_boxes_together(format, accuracy, box):
    archive = Archive(TAU)
    archive.admit([query("x", scored("here", box, format, accuracy))])
    qualifies = format == 1 and accuracy == 1 and box > TAU
    assert archive.reference(query("x")) == ("here" if qualifies else None)
    assert len(archive) == qualifies


def test_the_threshold_is_a_setting():
    archive = Archive(threshold=0.7)
    archive.admit([query("x", scored("low", 0.7)), query("y", scored("high", 0.71))])
    assert references(archive) == {"x": None, "y": "high", "z": None}


def test_the_reference_is_the_think_text_as_it_was_written():
    assert filled(x=(" The cross is\n large. ", 0.9)).reference(query("x")) == " The cross is\n large. "


def test_an_unqualified_rollout_with_better_boxes_is_passed_over():
    archive = Archive(TAU)
    archive.admit([query("x", scored("wrong", 1.0, accuracy=0.0), scored("right", 0.4))])
    assert archive.reference(query("x")) == "right"


@given(iterations)
def test_the_best_ever_seen_is_kept_and_a_tie_changes_nothing(history):
    after = admit_all(Archive(TAU), history)
    for i, seen in enumerate(after):
        assert seen == {name: first_best(history[: i + 1], name) for name in "xyz"}


@given(iterations)
def test_switched_off_only_this_iteration_counts(history):
    after = admit_all(Archive(TAU, persistent=False), history)
    for i, seen in enumerate(after):
        current = [{}] * i + history[i : i + 1]
        assert seen == {name: first_best(current, name) for name in "xyz"}


def test_the_key_is_the_samples_id_alone():
    archive = filled(x=("kept", 0.9))
    again = make_query(make_sample("x", question="Asked anew?", answer="blue"), textual=[])
    assert archive.reference(again) == "kept"


def test_textual_and_single_rollouts_never_enter():
    archive = Archive(TAU)
    archive.admit([make_query(make_sample("x"), textual=[scored("t", 1.0)], single=[scored("s", 1.0)])])
    assert len(archive) == 0


@given(iterations, iterations)
def test_a_restored_archive_goes_on_as_the_saved_one_would(before, afterwards):
    archive, restored = Archive(TAU), Archive(TAU)
    admit_all(archive, before)
    file = io.BytesIO()
    torch.save(archive.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert references(restored) == references(archive) and len(restored) == len(archive)
    assert admit_all(restored, afterwards) == admit_all(archive, afterwards)


def test_a_saved_state_does_not_change_with_the_archive():
    archive = filled(x=("old", 0.5))
    state = archive.state_dict()
    archive.admit([query("x", scored("new", 0.9)), query("y", scored("other", 0.9))])
    restored = Archive(TAU)
    restored.load_state_dict(state)
    assert references(restored) == {"x": "old", "y": None, "z": None}


def test_loading_replaces_what_was_there():
    archive = filled(x=("mine", 0.9))
    archive.load_state_dict(filled(y=("theirs", 0.4)).state_dict())
    assert references(archive) == {"x": None, "y": "theirs", "z": None}


def admit_as_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    archive = Archive(TAU)
    if rank == 0:
        archive.admit([query("x", scored("x of 0", 0.5)), query("y", scored("y of 0", 0.6))])
        archive.admit([query("z", scored("z of 0", 0.3))])
    else:
        archive.admit([query("x", scored("x of 1", 0.8)), query("y", scored("y of 1", 0.6))])
        archive.admit([query("z", scored("z of 1", 0.9)), query("x", scored("later", 0.7))])
    torch.save(archive.state_dict(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.timeout(60)
def test_two_ranks_keep_the_same(tmp_path):
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=admit_as_rank, args=(rank, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first == second
    archive = Archive(TAU)
    archive.load_state_dict(first)
    assert references(archive) | {"y": "either"} == {"x": "x of 1", "y": "either", "z": "z of 1"}
    assert archive.reference(query("y")) in ("y of 0", "y of 1")


def of_source(source: int | None, sample_id: str, *rollouts: Rollout) -> Query:
    return replace(query(sample_id, *rollouts), source=source)


def test_ids_of_two_sources_do_not_meet():
    archive = Archive(TAU)
    archive.admit([of_source(0, "1", scored("of a", 0.5)), of_source(1, "1", scored("of b", 0.4))])
    assert [archive.reference(of_source(source, "1")) for source in (0, 1, 2)] == ["of a", "of b", None]
    restored = Archive(TAU)
    restored.load_state_dict(archive.state_dict())
    restored.admit([of_source(1, "1", scored("better", 0.45)), of_source(0, "1", scored("worse", 0.4))])
    assert [restored.reference(of_source(source, "1")) for source in (0, 1)] == ["of a", "better"]
    assert list(map(read_key, restored.state_dict())) == [("0", "1"), ("1", "1")]


def test_an_archive_that_does_not_tell_sources_apart_is_read():
    archive = Archive(TAU)
    archive.load_state_dict(filled(x=("old", 0.5), y=("older", 0.6)).state_dict())
    assert archive.reference(of_source(1, "x")) == "old"
    archive.admit([of_source(1, "x", scored("worse", 0.4)), of_source(1, "y", scored("better", 0.7))])
    assert archive.reference(of_source(1, "x")) == "old" and len(archive) == 2
    assert [archive.reference(of_source(source, "y")) for source in (0, 1)] == [None, "better"]
    assert list(map(read_key, archive.state_dict())) == [("", "x"), ("1", "y")]


@pytest.mark.parametrize("key", ["x", "\x1fx", "a\x1fb", ""])
def test_one_source_keeps_the_bare_ids(key):
    archive = Archive(TAU)
    archive.admit([of_source(None, key, scored("kept", 0.9))])
    assert list(archive.state_dict()) == [key] and read_key(key) == ("", key)
