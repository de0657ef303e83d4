"""Processes that read and encode."""

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, IterableDataset

PREFETCH = 1  # batches that each process has ready: a batch is an iteration's, gigabytes of pixels


def make_loader(dataset: IterableDataset, encode: Callable, workers: int) -> DataLoader:
    """Batches as the dataset gives them, encoded where they were read."""
    context = "spawn" if workers else None
    return DataLoader(
        dataset,
        batch_size=None,
        collate_fn=encode,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=context,
        generator=torch.Generator(),
    )
