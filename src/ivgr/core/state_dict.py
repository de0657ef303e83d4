"""Names and shapes of a model's weights, compared with those of a checkpoint."""

from pathlib import Path

import torch

from ivgr.core.errors import UserError

Shapes = dict[str, torch.Size]


def shapes_of(state: dict[str, torch.Tensor]) -> Shapes:
    return {name: tensor.shape for name, tensor in state.items()}


def find_mismatch(own: Shapes, saved: Shapes) -> str | None:
    """The first name that only one of them has, or that has another shape there."""
    return next((name for name in sorted(own | saved) if own.get(name) != saved.get(name)), None)


def refuse_other_policy(own: Shapes, saved: Shapes, path: Path | str) -> None:
    """UserError if the shapes that a checkpoint holds, by name, are not those of the run's policy."""
    odd = find_mismatch(own, saved)
    if odd is not None:
        raise UserError(
            f"checkpoint {path}: its policy differs from model.policy (first at {odd}); "
            "resume with the policy and the adapter it was made with"
        )
