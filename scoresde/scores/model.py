r"""A network as a score: with its SDE, parametrization, label and condition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoresde import networks, sdes
from scoresde._core.checks import check_file, check_instance
from scoresde._core.shapes import Time, check_batch, check_like, expand, per_sample
from scoresde.scores import labels, predictions
from scoresde.scores.base import PredictionScore, Score
from scoresde.scores.files import read_model, write_model
from scoresde.scores.labels import by_time
from scoresde.scores.moments import Moments
from scoresde.scores.predictions import NOISE, Prediction
from scoresde.sdes import GaussianSDE

_INCOMPATIBLE = object()
"""Marks two values of a condition that cannot be concatenated in one batch."""

LabelFunction = Callable[[GaussianSDE, Tensor], Tensor]


class ScoreModel(PredictionScore):
    r"""A network with its diffusion, its parametrization, and the label it receives for the time.

    The network is called as ``network(c_in x, label)`` in its own dtype, with ``label`` of shape
    ``(batch,)`` and at least in float32, since half precision does not resolve adjacent times; the
    result has the dtype of ``x``. All coefficients are float64 until the last multiplication.

    Args:
        network: any module called as ``network(x, label, **condition)`` whose result is x-shaped.
        sde: a Gaussian diffusion.
        prediction: NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data).
        label: by_time, by_sigma, by_half_logsnr, by_index, or any function ``(sde, t) -> label``.
        condition: keyword arguments bound to every call of the network; see :meth:`given`.
        moments: mean and covariance of the data, if known; ``fit`` records them.

    Raises:
        TypeError: if the network is not callable or does not take a bound condition.
        ValueError: when called, if the network's output does not have the shape of ``x``.

    Example:
        >>> from scoresde import MLP, VPSDE
        >>> model = ScoreModel(MLP((2,), width=16, depth=1), VPSDE())
        >>> model(torch.randn(5, 2), 0.3).shape
        torch.Size([5, 2])

    References:
        Song et al. 2021, arXiv:2011.13456, eq. 7; Karras et al. 2022, arXiv:2206.00364, eq. 7.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        sde: GaussianSDE,
        prediction: Prediction = NOISE,
        label: LabelFunction = by_time,
        condition: Mapping[str, Any] | None = None,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(sde, prediction, moments)
        hint = "predictions are defined by α and σ; for a general SDE use FunctionScore"
        check_instance("sde", sde, GaussianSDE, "VPSDE()", hint)
        if not callable(network):
            raise TypeError(
                f"network: expected a module called as (x, label), got {type(network).__name__}"
            )
        if not callable(label):
            raise TypeError(f"label: expected a function (sde, t) -> label, got {label!r}")
        self.network: Any = network
        self.label = label
        self.condition = dict(condition or {})
        _check_condition(network, self.condition)

    def output(self, x: Tensor, t: Time) -> Tensor:
        time = self.sde.interior(t)
        check_batch(time, x)
        scale = self.prediction.input(self.sde, time)
        scaled = x if scale is None else expand(scale, x) * x
        parameter = next(self.network.parameters(), x) if isinstance(self.network, nn.Module) else x
        wide = torch.promote_types(parameter.dtype, torch.float32)
        label = per_sample(self.label(self.sde, time), x).to(wide)
        condition = {
            key: _per_row(value, x.shape[0], x.device) for key, value in self.condition.items()
        }
        out = self.network(scaled.to(parameter.dtype), label, **condition)
        return check_like("network", out, x).to(x.dtype)

    def given(self, **condition: Any) -> ScoreModel:
        """Return the conditional score: the same network with ``condition`` bound to every call.

        Args:
            **condition: keyword arguments of the network; a number is shared by the batch, a tensor
                has one row per sample.

        Example:
            >>> from scoresde import MLP, VPSDE
            >>> model = ScoreModel(MLP((2,), width=16, depth=1, classes=10), VPSDE())
            >>> model.given(classes=3).denoised(torch.randn(4, 2), 0.5).shape
            torch.Size([4, 2])
        """
        bound = {**self.condition, **condition}
        return self._with(bound)

    def select(self, index: Tensor | slice) -> ScoreModel:
        if not self.condition:
            return self
        return self._with({key: _take(value, index) for key, value in self.condition.items()})

    def concatenate(self, other: Score, rows: int, others: int) -> ScoreModel | None:
        """Return one model for both batches if network, SDE, label and prediction are the same."""
        ours, theirs = self.condition, getattr(other, "condition", {})
        same = all(
            getattr(other, name, None) is getattr(self, name)
            for name in ("network", "sde", "label")
        )
        if not same or getattr(other, "prediction", None) != self.prediction:
            return None
        if ours.keys() != theirs.keys():
            return None
        both = {key: _join(ours[key], theirs[key], rows, others) for key in ours}
        return None if any(value is _INCOMPATIBLE for value in both.values()) else self._with(both)

    def _with(self, condition: Mapping[str, Any]) -> ScoreModel:
        model = ScoreModel(
            self.network, self.sde, self.prediction, self.label, condition, self.moments
        )
        model.training = self.training  # of this wrapper alone: the network's mode is its own
        return model

    def save(self, path: str | Path) -> None:
        """Write the model as one safetensors file, with JSON metadata to rebuild it.

        Networks and SDEs of this library are rebuilt from the file alone; of others the file has
        the weights and the class name, and the object is an argument of :meth:`load`. A bound
        condition is not part of the model and is not written.

        Args:
            path: the file to write.

        Raises:
            TypeError: if the network is a plain function, which has no weights to write.
        """
        if not isinstance(self.network, nn.Module):
            raise TypeError(
                f"network: expected an nn.Module to save, got {type(self.network).__name__}; wrap "
                "the function in a module"
            )
        write_model(self, Path(path))

    @classmethod
    def load(
        cls,
        path: str | Path,
        network: nn.Module | None = None,
        *,
        sde: GaussianSDE | None = None,
        label: LabelFunction | None = None,
        device: torch.device | str = "cpu",
    ) -> ScoreModel:
        """Read a model written by :meth:`save`; nothing in the file is executed.

        Args:
            path: the file.
            network: a module to load the weights into, needed if it is not one of this library's.
            sde: likewise for the diffusion.
            label: likewise for the label.
            device: where to put the model.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged, foreign, or does not fit the network.
        """
        parts = read_model(check_file("path", path))
        model = cls(
            parts.build("network", network, networks),
            parts.build("sde", sde, sdes),
            parts.build("prediction", None, predictions),
            parts.build("label", label, labels),
            moments=parts.moments(),
        )
        parts.load_weights("network", model.network, keep_dtype=network is None)
        parts.load_weights("sde", model.sde, keep_dtype=sde is None)
        return model.to(device).eval()


def _check_condition(network: Callable[..., Tensor], condition: Mapping[str, Any]) -> None:
    function = network.forward if isinstance(network, nn.Module) else network
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for key in condition:
        if key not in parameters:
            raise TypeError(
                f"condition: {type(network).__name__} takes no argument {key!r}; it takes "
                f"{', '.join(list(parameters)[2:]) or 'no condition at all'}"
            )


def _per_row(value: Any, rows: int, device: torch.device | None = None) -> Any:
    if isinstance(value, bool | int | float):
        value = torch.as_tensor(value)
    if not isinstance(value, Tensor):
        return value
    value = value if device is None else value.to(device)
    if value.ndim == 0:
        return value.expand(rows)
    if value.shape[0] != rows:
        raise ValueError(f"condition: expected one row per sample, {rows}, got {value.shape[0]}")
    return value


def _join(ours: Any, theirs: Any, rows: int, others: int) -> Any:
    """Return two values of a condition concatenated, or ``_INCOMPATIBLE``."""
    ours, theirs = _per_row(ours, rows), _per_row(theirs, others)
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return ours if ours is theirs else _INCOMPATIBLE
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
        return _INCOMPATIBLE
    return torch.cat([ours, theirs.to(ours.device)])


def _take(value: Any, index: Tensor | slice) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value[index.to(value.device) if isinstance(index, Tensor) else index]
