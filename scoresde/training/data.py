"""Training data of any accepted kind as an endless sequence of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scoresde._core.checks import check_floating, check_state, summarize
from scoresde.training.config import TrainingConfig
from scoresde.training.processes import ProcessGroup
from scoresde.training.randomness import derive_seed

Data = Tensor | tuple[Tensor, Tensor] | Dataset[Any] | DataLoader[Any]
"""Samples ``(n, *event)``, with or without a label each, or a Dataset or DataLoader of them."""

Batch = tuple[Tensor, Tensor | None]

_LARGEST_SAMPLE = 10_000
"""Number of samples of a Dataset that its moments are estimated from; of a tensor it is all."""


def as_dataset(name: str, data: Any, condition: str | None) -> Dataset[Any] | DataLoader[Any]:
    """Return data of any accepted kind as a Dataset or DataLoader; tensors are checked here."""
    if isinstance(data, Tensor):
        data = TensorDataset(check_state(name, data))
    elif isinstance(data, tuple) and len(data) == 2:
        x, labels = check_state(f"{name}[0]", data[0]), torch.as_tensor(data[1])
        if labels.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"{name}: expected one label per sample, got {summarize(labels)} for {len(x)} "
                "samples; pass (samples, labels)"
            )
        data = TensorDataset(x, labels)
    if not isinstance(data, Dataset | DataLoader):
        raise TypeError(
            f"{name}: expected a tensor, a pair (samples, labels), a Dataset or a DataLoader, got "
            f"{summarize(data)}; convert arrays with torch.as_tensor"
        )
    if condition is not None and isinstance(data, TensorDataset) and len(data.tensors) < 2:
        raise ValueError(
            f"{name}: expected labels for condition={condition!r}, got samples alone; pass the "
            "pair (samples, labels)"
        )
    return data


def training_batches(
    data: Dataset[Any] | DataLoader[Any], config: TrainingConfig, group: ProcessGroup, start: int
) -> Iterator[Batch]:
    """Batches of this process, from step ``start`` on: shuffled passes through the data."""
    if isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=config.batch_size // group.size)
    if isinstance(data, DataLoader):
        yield from _repeated(data)
        return
    own = slice(group.rank, None, group.size)
    batches = batch_indices(len(cast(Sized, data)), config.batch_size, config.seed, start)
    if isinstance(data, TensorDataset):
        for indices in batches:
            yield _batch(data[indices[own]])
    loader = DataLoader(data, batch_sampler=(indices[own].tolist() for indices in batches))
    yield from map(_batch, loader)


def batch_indices(n: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of the batches from number ``start`` on, cut from successive permutations of n."""

    def permutation(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive_seed("pass", seed, number))
        return torch.randperm(n, generator=generator)

    number, used = divmod(start * batch_size, n)
    pending = permutation(number)[used:]
    while True:
        while len(pending) < batch_size:
            number += 1
            pending = torch.cat([pending, permutation(number)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def _repeated(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Pass after pass through a loader."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield _batch(batch)
        if empty:
            raise ValueError("data: expected at least one batch, got an empty pass of the loader")


def held_out_batches(data: Dataset[Any] | DataLoader[Any], size: int) -> Iterator[Batch]:
    """One pass through the data, in their own order."""
    if isinstance(data, TensorDataset):
        return (_batch(data[i : i + size]) for i in range(0, len(data), size))
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=size)
    return map(_batch, loader)


def _batch(item: Any) -> Batch:
    """Return what a dataset or loader gives as samples, and labels if there are any."""
    x, labels = (item, None) if isinstance(item, Tensor) else (*item, None)[:2]
    return check_floating("data", x), labels


def moment_samples(
    data: Dataset[Any] | DataLoader[Any], config: TrainingConfig, group: ProcessGroup
) -> Tensor:
    """Samples to estimate the moments from: all of a tensor, the first few thousand otherwise."""
    if isinstance(data, TensorDataset):
        return data.tensors[0]
    rows = data.dataset if isinstance(data, DataLoader) else data
    wanted = min(_LARGEST_SAMPLE, len(rows)) if isinstance(rows, Sized) else _LARGEST_SAMPLE
    found: list[Tensor] = []
    for x, _ in training_batches(data, config, group, 0):
        found.append(x.cpu())
        if sum(map(len, found)) >= wanted:
            break
    return check_state("data", torch.cat(found))
