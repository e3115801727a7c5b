"""Objects of torchsde as SDEs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoresde._core.shapes import Time, as_time, check_batch, flatten, like_time
from scoresde.sdes import SDE


class FromTorchSDE(SDE):
    r"""An object of torchsde, with ``f(t, y)``, ``g(t, y)`` and ``noise_type``, as an SDE.

    It describes the process from data to noise, t increasing from 0 to T. Its noise must be one
    number g(t) for all states and coordinates: ``"diagonal"`` with g(t) in each column, or g(t) I
    (``"additive"``, ``"general"``, ``"scalar"`` where d = 1). As it does not depend on the state,
    Itô and Stratonovich are the same.

    Args:
        object: the object of torchsde.
        T: noise end of time.
        t_min: data end of numerical work.
        dimension: number d of coordinates with which its noise is evaluated.

    Raises:
        TypeError: if ``f``, ``g`` or ``noise_type`` is missing.
        ValueError: when called, if the noise depends on the state or on the coordinate.

    Example:
        >>> class Spring(torch.nn.Module):
        ...     noise_type, sde_type = "diagonal", "ito"
        ...
        ...     def f(self, t, y):
        ...         return -y
        ...
        ...     def g(self, t, y):
        ...         return torch.full_like(y, 2.0).sqrt()
        >>> sde = FromTorchSDE(Spring())
        >>> sde.drift(torch.ones(1, 2), 0.5), round(float(sde.diffusion(0.5)), 3)
        (tensor([[-1., -1.]]), 1.414)

    References:
        Li et al., *Scalable gradients for stochastic differential equations*, 2020,
        arXiv:2001.01328.
    """

    def __init__(
        self, object: Any, T: float = 1.0, t_min: float = 1e-5, dimension: int = 2
    ) -> None:
        super().__init__(T, t_min)
        for name in ("f", "g", "noise_type"):
            if not hasattr(object, name):
                raise TypeError(
                    f"object: expected one of torchsde with f(t, y), g(t, y) and noise_type, got "
                    f"{type(object).__name__} without {name!r}; for plain functions use FunctionSDE"
                )
        self.object = object
        self.dimension = dimension

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return f(t, x), shaped like ``x``; it is evaluated once for each time."""
        time = as_time(t, self.T)
        check_batch(time, x)
        y = flatten(x)
        if time.ndim == 0:
            drift: Tensor = self.object.f(time.to(x), y).reshape(x.shape)
            return drift
        parts = [self.object.f(u.to(x), y[i : i + 1]) for i, u in enumerate(time)]
        return torch.cat(parts).reshape(x.shape)

    def diffusion(self, t: Time) -> Tensor:
        """Return g(t), shaped like ``t``."""
        time = as_time(t, self.T)
        values = [self._noise(u) for u in time.reshape(-1)]
        return like_time(torch.stack(values).reshape(time.shape), t)

    def _noise(self, t: Tensor) -> Tensor:
        y = torch.linspace(-1.0, 1.0, 2 * self.dimension, dtype=torch.float64, device=t.device)
        g = self.object.g(t, y.reshape(2, self.dimension)).to(torch.float64)
        if self.object.noise_type == "diagonal":
            g = torch.diag_embed(g)
        value: Tensor = g[0, 0, 0]
        eye = torch.eye(self.dimension, dtype=g.dtype, device=g.device)
        if g.shape[1:] != eye.shape or not torch.allclose(g, value * eye, rtol=1e-6):
            raise ValueError(
                f"object: expected one number g(t) as noise for all states and coordinates, got "
                f"g = {g.tolist()} for two states; a diffusion whose noise depends on the state "
                "has no score-based reversal here"
            )
        return value
