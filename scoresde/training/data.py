"""Data of any accepted kind as an endless row of batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scoresde._core.checks import check_floating, check_state, summarize
from scoresde.training.processes import Group
from scoresde.training.randomness import hash_of
from scoresde.training.recipe import Recipe

Data = Tensor | tuple[Tensor, Tensor] | Dataset | DataLoader
"""Samples ``(n, *event)``, with or without a label each, or a Dataset or DataLoader of them."""

Batch = tuple[Tensor, Tensor | None]

_LARGEST_SAMPLE = 10_000
"""The data's moments are estimated from so many samples of a Dataset, and from all of a tensor."""


def source_of(name: str, data: Any, condition: str | None) -> Dataset | DataLoader:
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


def endless(
    data: Dataset | DataLoader, recipe: Recipe, group: Group, start: int
) -> Iterator[Batch]:
    """Batches of this process, from step ``start`` on: shuffled passes through the data."""
    local = recipe.batch_size // group.size
    if isinstance(data, DataLoader):
        return _passes(data)
    if isinstance(data, IterableDataset):
        return _passes(DataLoader(data, batch_size=local))
    indices = order(len(data), recipe.batch_size, recipe.seed, start)  # type: ignore[arg-type]
    own = (index[group.rank :: group.size] for index in indices)
    if isinstance(data, TensorDataset):
        return (_pair(data[index]) for index in own)
    return map(_pair, DataLoader(data, batch_sampler=(index.tolist() for index in own)))


def order(n: int, batch_size: int, seed: int, start: int) -> Iterator[Tensor]:
    """Indices of the batches from number ``start`` on, cut from one row of shuffled passes."""

    def shuffled(number: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash_of("pass", seed, number))
        return torch.randperm(n, generator=generator)

    number, done = divmod(start * batch_size, n)
    row = shuffled(number)[done:]
    while True:
        while len(row) < batch_size:
            number += 1
            row = torch.cat([row, shuffled(number)])
        yield row[:batch_size]
        row = row[batch_size:]


def _passes(loader: DataLoader) -> Iterator[Batch]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield _pair(batch)
        if empty:
            raise ValueError("data: expected at least one batch, got an empty pass of the loader")


def once(data: Dataset | DataLoader, size: int) -> Iterator[Batch]:
    """One pass through the data, in their own order."""
    if isinstance(data, TensorDataset):
        return (_pair(data[i : i + size]) for i in range(0, len(data), size))
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=size)
    return map(_pair, loader)


def _pair(batch: Any) -> Batch:
    """Read a batch as samples and labels, if it has any."""
    x, labels = (batch, None) if isinstance(batch, Tensor) else (*batch, None)[:2]
    return check_floating("data", x), labels


def some_samples(data: Dataset | DataLoader, recipe: Recipe, group: Group) -> Tensor:
    """Samples to estimate the moments from: all of a tensor, the first few thousand otherwise."""
    if isinstance(data, TensorDataset):
        return data.tensors[0]
    rows = data.dataset if isinstance(data, DataLoader) else data
    wanted = min(_LARGEST_SAMPLE, len(rows)) if hasattr(rows, "__len__") else _LARGEST_SAMPLE
    found: list[Tensor] = []
    for x, _ in endless(data, recipe, group, 0):
        found.append(x.cpu())
        if sum(map(len, found)) >= wanted:
            break
    return check_state("data", torch.cat(found))
