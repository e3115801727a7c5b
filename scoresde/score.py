r"""A network that knows its SDE.

The hub is the denoiser x̂(x, t) = E[x_0 | x_t = x]; for x_t = α x_0 + σ ε all else is linear in it,

    noise ε̂ = (x − α x̂)/σ,      score s = ∇ log p_t = −ε̂/σ,      velocity v = α ε̂ − σ x̂,

(Tweedie's formula), and so is every parametrisation a network may have been trained in
(:mod:`scoresde.predictions`).
"""

from __future__ import annotations

import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scoresde import networks, predictions, sdes
from scoresde._checks import check_file
from scoresde._records import describe, rebuild
from scoresde._shapes import (
    Time,
    as_time,
    check_batch,
    check_like,
    combination,
    expand,
    per_sample,
)
from scoresde.moments import Moments
from scoresde.predictions import DATA, NOISE, SCORE, VELOCITY, Prediction, by_time
from scoresde.sdes import SDE, GaussianSDE

_FORMAT = "scoresde.ScoreModel"
_APART = object()
"""What two values of a condition are that no batch can hold both of."""

LabelFunction = Callable[[GaussianSDE, Tensor], Tensor]


class Score(nn.Module, ABC):
    """A score that knows its diffusion: give :meth:`denoised`, and the other views follow.

    Wrappers (guidance, conditions, restrictions) are Scores again, so that samplers and likelihoods
    take them as they take a network.

    Args:
        sde: the diffusion the score belongs to.
        moments: mean and covariance of the data, if known.

    Example:
        >>> from scoresde import VPSDE
        >>> class Origin(Score):  # all data at 0
        ...     def denoised(self, x, t):
        ...         return torch.zeros_like(x)
        >>> score = Origin(VPSDE())
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(score(x, 0.5), -x / score.sde.sigma(0.5) ** 2)
        True
    """

    def __init__(self, sde: SDE, moments: Moments | None = None) -> None:
        super().__init__()
        if not isinstance(sde, SDE):
            raise TypeError(f"sde: expected an SDE such as VPSDE(), got {type(sde).__name__}")
        self.sde: Any = sde
        self.moments = Moments() if moments is None else moments

    @abstractmethod
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂ = E[x_0 | x_t = x], shaped like ``x`` ``(batch, *event)``."""

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """Return the score s = ∇ log p_t(x), shaped like ``x`` ``(batch, *event)``."""
        return self._read(SCORE, x, t)

    @final
    def noise(self, x: Tensor, t: Time) -> Tensor:
        """Return ε̂ = E[ε | x_t = x], shaped like ``x``."""
        return self._read(NOISE, x, t)

    @final
    def velocity(self, x: Tensor, t: Time) -> Tensor:
        """Return v = α ε̂ − σ x̂, shaped like ``x``."""
        return self._read(VELOCITY, x, t)

    def rows(self, index: Tensor | slice) -> Score:
        """Return the score of a part of the batch: what it holds per sample is indexed alike."""
        return self

    def beside(self, other: Score, rows: int, others: int) -> Score | None:
        """Return this score on ``rows`` samples and the other on ``others`` more, in one batch.

        None if it takes two evaluations, as it does of any two networks.
        """
        return None

    def _read(self, view: Prediction, x: Tensor, t: Time) -> Tensor:
        """Return what a perfect network of parametrisation ``view`` would put out."""
        return _convert(DATA, self.denoised(x, t), view, self.sde, x, t)


class PredictionScore(Score):
    """A score given in any parametrisation: ``output`` in the terms of ``prediction``.

    Args:
        sde: the diffusion the score belongs to.
        prediction: the parametrisation of :meth:`output`.
        moments: mean and covariance of the data, if known.
    """

    def __init__(
        self, sde: SDE, prediction: Prediction = NOISE, moments: Moments | None = None
    ) -> None:
        super().__init__(sde, moments)
        if not isinstance(prediction, Prediction):
            raise TypeError(
                "prediction: expected NOISE, DATA, SCORE, VELOCITY, FLOW or edm(sigma_data), got "
                f"{prediction!r}"
            )
        self.prediction = prediction

    @abstractmethod
    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return what ``prediction`` says it is, shaped like ``x``."""

    @final
    def denoised(self, x: Tensor, t: Time) -> Tensor:
        """Return x̂ = E[x_0 | x_t = x], shaped like ``x``."""
        return self._read(DATA, x, t)

    def _read(self, view: Prediction, x: Tensor, t: Time) -> Tensor:
        return _convert(self.prediction, self.output(x, t), view, self.sde, x, t)


class FunctionScore(PredictionScore):
    """A plain function ``(x, t) -> x-shaped`` as a Score.

    The only Score that a general, non-Gaussian SDE can have; there, ``prediction`` must be SCORE.

    Args:
        function: the score, or what ``prediction`` says, of ``x`` ``(batch, *event)`` and a float64
            ``t`` ``()`` or ``(batch,)``.
        sde: the diffusion it belongs to.
        prediction: what the function returns.
        moments: mean and covariance of the data, if known.

    Example:
        >>> from scoresde import VPSDE
        >>> score = FunctionScore(lambda x, t: -x, VPSDE())  # data N(0, I) stay N(0, I)
        >>> score.denoised(torch.ones(1, 2), 1e-3)
        tensor([[0.9999, 0.9999]])
    """

    def __init__(
        self,
        function: Callable[[Tensor, Tensor], Tensor],
        sde: SDE,
        prediction: Prediction = SCORE,
        moments: Moments | None = None,
    ) -> None:
        super().__init__(sde, prediction, moments)
        if not callable(function):
            raise TypeError(f"function: expected a callable (x, t), got {type(function).__name__}")
        self.function = function

    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return the function's value, shaped like ``x``."""
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        return check_like("function", self.function(x, time), x)


class ScoreModel(PredictionScore):
    r"""A network with its diffusion, what it predicts, and the label it is told the time by.

    The network sees ``network(c_in x, label)`` in its own dtype, with ``label`` of shape
    ``(batch,)`` and at least in float32, since half precision would merge neighbouring times; the
    result comes back in the dtype of ``x``. All coefficients are float64 until the last
    multiplication.

    Args:
        network: any module called as ``network(x, label, **condition)`` that returns x-shaped.
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
        if not isinstance(sde, GaussianSDE):
            raise TypeError(
                f"sde: expected a GaussianSDE, whose predictions are defined by α and σ, got "
                f"{type(sde).__name__}; for a general SDE use FunctionScore(network, sde)"
            )
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
        """Return the network's raw output, shaped like ``x``."""
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

    def rows(self, index: Tensor | slice) -> ScoreModel:
        """Return the score of a part of the batch, with its rows of the condition."""
        if not self.condition:
            return self
        return self._with({key: _take(value, index) for key, value in self.condition.items()})

    def beside(self, other: Score, rows: int, others: int) -> ScoreModel | None:
        """Return one model for both parts of a batch, if they differ by their conditions alone."""
        ours, theirs = self.condition, getattr(other, "condition", {})
        alike = all(
            getattr(other, name, None) is getattr(self, name)
            for name in ("network", "sde", "label")
        )
        if not alike or getattr(other, "prediction", None) != self.prediction:
            return None
        if ours.keys() != theirs.keys():
            return None
        both = {key: _join(ours[key], theirs[key], rows, others) for key in ours}
        return None if any(value is _APART for value in both.values()) else self._with(both)

    def _with(self, condition: Mapping[str, Any]) -> ScoreModel:
        model = ScoreModel(
            self.network, self.sde, self.prediction, self.label, condition, self.moments
        )
        model.training = self.training  # of this wrapper alone: the network's mode is its own
        return model

    def save(self, path: str | Path) -> None:
        """Write the model as one safetensors file whose JSON metadata tell how to rebuild it.

        Networks and SDEs of this library are rebuilt from the file alone; of others the weights and
        the name are kept, and the object has to be handed to :meth:`load`. A bound condition is not
        part of the model and is not written.

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
        record = {
            "network": _describe_or_name(self.network, _classes(networks)),
            "sde": _describe_or_name(self.sde, _classes(sdes)),
            "prediction": describe(self.prediction, _classes(predictions)),
            "label": _describe_or_name(self.label, _classes(predictions)),
        }
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().clone().contiguous()
            for part in ("network", "sde", "moments")
            for name, tensor in getattr(self, part).state_dict().items()
        }
        record["moments_known"] = self.moments.known
        metadata = {"format": _FORMAT, "version": "1", "model": json.dumps(record)}
        save_file(tensors, Path(path), metadata=metadata)

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
        tensors, record = _read_file(check_file("path", path))
        model = cls(
            _rebuild_or_take("network", network, record, networks),
            _rebuild_or_take("sde", sde, record, sdes),
            _rebuild_or_take("prediction", None, record, predictions),
            _rebuild_or_take("label", label, record, predictions),
            moments=_read_moments(tensors, record),
        )
        _load_part(model.network, "network", tensors, path, keep_dtype=network is None)
        _load_part(model.sde, "sde", tensors, path, keep_dtype=sde is None)
        return model.to(device).eval()


def _convert(
    source: Prediction, output: Tensor, target: Prediction, sde: SDE, x: Tensor, t: Time
) -> Tensor:
    """Read an output in the terms of ``source`` as one in the terms of ``target``, through x̂."""
    direct = target.directly(source, output, x)
    if direct is not None:
        return direct
    if not isinstance(sde, GaussianSDE):
        raise TypeError(
            f"sde: expected a GaussianSDE to turn {source} into {target}, got "
            f"{type(sde).__name__}; a general SDE has only a score, no denoiser"
        )
    time = sde.interior(t)
    check_batch(time, x)
    source_residual, source_gain = source.coefficients(sde, time)
    target_residual, target_gain = target.coefficients(sde, time)
    skip = (source_residual - target_residual) / target_gain
    return combination(skip, x, source_gain / target_gain, output)


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
    """Return what stands for two values of a condition, one after the other, or ``_APART``."""
    ours, theirs = _per_row(ours, rows), _per_row(theirs, others)
    if not (isinstance(ours, Tensor) and isinstance(theirs, Tensor)):
        return ours if ours is theirs else _APART
    if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
        return _APART
    return torch.cat([ours, theirs.to(ours.device)])


def _take(value: Any, index: Tensor | slice) -> Any:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return value[index.to(value.device) if isinstance(index, Tensor) else index]


def _classes(module: ModuleType) -> dict[str, type]:
    """The public classes of one of this library's modules: what a saved model may name."""
    return {
        name: vars(module)[name] for name in module.__all__ if isinstance(vars(module)[name], type)
    }


def _describe_or_name(value: Any, catalogue: Mapping[str, type]) -> Any:
    try:
        return describe(value, catalogue)
    except (TypeError, AttributeError):
        name = getattr(value, "__qualname__", type(value).__qualname__)
        return {"foreign": name}


def _rebuild_or_take(name: str, given: Any, record: Mapping[str, Any], module: ModuleType) -> Any:
    if given is not None:
        return given
    if isinstance(record[name], dict) and "foreign" in record[name]:
        raise ValueError(
            f"{name}: expected the {record[name]['foreign']} that the file was written with, got "
            f"None; it is not part of scoresde, so build it and pass {name}="
        )
    try:
        return rebuild(record[name], _classes(module))
    except ValueError as error:
        raise ValueError(f"{name}: the file's record of it cannot be rebuilt: {error}") from None


def _read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"path: expected a safetensors file written by ScoreModel.save, got {path}, which is "
            f"damaged or of another kind ({error})"
        ) from None
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"path: expected a file written by ScoreModel.save, got {path}, a safetensors file of "
            f"another program (metadata {sorted(metadata) or 'absent'})"
        )
    return tensors, _read_record(metadata.get("model", ""), path)


def _read_record(text: str, path: Path) -> dict[str, Any]:
    parts = {"network", "sde", "prediction", "label", "moments_known"}
    try:
        record = json.loads(text)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not parts <= record.keys():
        raise ValueError(
            f"path: expected metadata with {sorted(parts)} as ScoreModel.save writes them, got "
            f"{path}, where they are damaged; take another copy of the file"
        )
    return record


def _read_moments(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> Moments:
    for name in ("moments.mean", "moments.variance"):
        if name not in tensors:
            raise ValueError(f"path: expected a tensor {name!r} in the file, got {sorted(tensors)}")
    return Moments(
        tensors["moments.mean"],
        tensors["moments.variance"],
        tensors.get("moments.basis"),
        known=record["moments_known"],
    )


def _load_part(
    module: nn.Module,
    part: str,
    tensors: Mapping[str, Tensor],
    path: str | Path,
    keep_dtype: bool,
) -> None:
    state = {
        key.removeprefix(f"{part}."): value
        for key, value in tensors.items()
        if key.startswith(f"{part}.")
    }
    try:
        module.load_state_dict(state, assign=keep_dtype)
    except RuntimeError as error:
        raise ValueError(f"{part}: the weights in {path} do not fit it: {error}") from None
