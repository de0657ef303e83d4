"""Copies from the host to a device."""

import torch


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`. The host does not wait for a GPU: CUDA has taken ordinary memory up
    when the call returns, and reads page-locked memory later, so that must not change until then."""
    return tensor.to(device, non_blocking=True)


def pin(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The same tensor in page-locked memory if `device` is a GPU: copies from there run beside its work."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
