"""Copies from the host to a device."""

import torch
from torch.nn.functional import pad

# Numbers of a tensor that share memory with others start at a multiple of so many: compiled kernels are made
# for memory at multiples of 16 bytes.
ALIGNED = 16


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`. The host does not wait for a GPU: CUDA has taken ordinary memory up
    when the call returns, and reads page-locked memory later, so that must not change until then."""
    return tensor.to(device, non_blocking=True)


def send_together(tensors: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """Tensors of the host and of one dtype on `device`, sent in one copy; they share its memory."""
    flat = [pad(tensor.flatten(), (0, -tensor.numel() % ALIGNED)) for tensor in tensors]
    parts = send(torch.cat(flat), device).split([len(part) for part in flat])
    return [part[: own.numel()].view(own.shape) for part, own in zip(parts, tensors, strict=True)]


def cat_pinned(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Tensors of the host in a row, in page-locked memory if `device` is a GPU: copies from there run beside
    the host's work."""
    shape = (sum(map(len, tensors)), *tensors[0].shape[1:])
    row = torch.empty(shape, dtype=tensors[0].dtype, pin_memory=device.type == "cuda")
    return torch.cat(tensors, out=row)
