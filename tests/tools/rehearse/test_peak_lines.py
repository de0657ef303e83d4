"""The lines that hold the most at a peak, from snapshots written by hand."""

from ivgr.tools.rehearse.peak_lines import find_peak_lines, name_line


def frame(file: str, line: int, name: str = "f") -> dict:
    return {"filename": file, "line": line, "name": name}


def event(action: str, address: int, size: int, line: int) -> dict:
    return {"action": action, "addr": address, "size": size, "frames": [frame("/a/own/work.py", line)]}


def test_what_is_freed_after_the_peak_is_seen_and_what_comes_later_is_not():
    held = {"address": 1, "size": 10, "state": "active_allocated", "frames": [frame("/a/own/work.py", 1)]}
    late = {"address": 4, "size": 5, "state": "active_allocated", "frames": [frame("/a/own/work.py", 4)]}
    events = [
        event("alloc", 1, 10, 1),
        event("alloc", 2, 30, 2),
        event("alloc", 3, 20, 3),
        event("free_requested", 2, 30, 2),
        event("free_completed", 2, 30, 2),
        event("free_requested", 3, 20, 3),
        event("alloc", 4, 5, 4),
    ]
    found = find_peak_lines({"segments": [{"blocks": [held, late]}], "device_traces": [events]})
    assert found == [("own/work.py:2", 30), ("own/work.py:3", 20), ("own/work.py:1", 10)]


def test_a_line_is_the_innermost_outside_torch_and_helpers():
    stack = [
        frame("/site/torch/_ops.py", 1, "__call__"),
        frame("/site/torch/nn/functional.py", 2, "linear"),
        frame("/site/lightning/fabric/utilities/init.py", 3),
        frame("/home/me/model.py", 4),
        frame("/home/me/train.py", 5),
    ]
    assert name_line(stack) == "me/model.py:4 (linear)"
    assert name_line([frame("/site/torch/_ops.py", 1, "__call__")]) == "autograd"
