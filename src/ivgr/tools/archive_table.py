"""`ivgr archive show`: the rollout archive of a checkpoint, on the terminal."""

from pathlib import Path

from ivgr.core.checkpoint_file import read_checkpoint, refuse_misshapen
from ivgr.core.errors import UserError
from ivgr.core.printable import print_table
from ivgr.rewards.archive import Archive, read_key


def show(checkpoint: Path) -> None:
    """Print the rollout archive of a checkpoint.

    Args:
        checkpoint: A checkpoint of `ivgr fit`.
    """
    state = read_checkpoint(checkpoint)
    if "archive" not in state["ivgr"]:
        raise UserError(f"archive show: {checkpoint} holds no rollout archive")
    refuse_misshapen(state, {"ivgr": {"archive": Archive.state_shape, "iteration": int}}, checkpoint)
    rows = [
        (*read_key(key), f"{box_reward:.3f}", think)
        for key, (box_reward, think) in sorted(state["ivgr"]["archive"].items())
    ]
    first = 0 if any(source for source, *_ in rows) else 1  # the column of sources, where there are any
    head = ("source", "id", "box reward", "reference reasoning")
    print_table(head[first:], [row[first:] for row in rows])
    print(f"{len(rows)} queries in the archive at iteration {state['ivgr']['iteration']}")


ARCHIVE = {"show": show}
