"""The frozen reference of the KL penalty."""

import copy

from transformers import PreTrainedModel

from ivgr.policy.load import Pretrained


class FrozenReference:
    """Makes the reference model.

    Args:
        path: Directory or hub id; null takes a copy of the policy as first loaded.
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path

    def load(self, policy: PreTrainedModel) -> PreTrainedModel:
        """A model in eval mode without gradients, never shared with `policy`."""
        model = copy.deepcopy(policy) if self.path is None else Pretrained(self.path).load()[0]
        return model.eval().requires_grad_(False)
