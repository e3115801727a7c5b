r"""Classifier guidance: an unconditional score plus the gradient of a noisy-data classifier.

By Bayes' theorem, at every noise level::

    ∇ log p_t(x|y) = ∇ log p_t(x) + ∇ log p(y|x_t = x),

which is exact if p(y|x_t) is the distribution of the label given the *noisy* data: the classifier
must be trained on perturbed data, with the noise level as an input (:func:`classification_loss`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_positive, check_state, check_tensor, summarize
from scoresde._core.random import normal_like
from scoresde._core.shapes import (
    Time,
    as_time,
    check_batch,
    expand,
    flatten,
    has_concrete_value,
    per_sample,
)
from scoresde.guidance.product import Product, Weight
from scoresde.samplers.base import check_gaussian
from scoresde.scores import SCORE, LabelFunction, PredictionScore, Score, by_half_logsnr
from scoresde.scores.base import require_score
from scoresde.sdes import SDE, GaussianSDE
from scoresde.traces import Tape
from scoresde.training import TimeSampler, Uniform


class NoisyClassifier(nn.Module):
    r"""A network that classifies x_t: logits of p(y|x_t), for any Gaussian diffusion.

    It is called as ``network(c_in x, label)`` with c_in = 1/√(α² c + σ²), so that its input has
    unit variance at every noise level; in the dtype of its parameters.

    Args:
        network: any module ``(x, label) -> logits (batch, K)``.
        sde: a Gaussian diffusion.
        std: √c, the standard deviation of the data.
        label: by_half_logsnr, by_time, … or any function ``(sde, t) -> label``.

    Raises:
        TypeError: if the network is not callable or the diffusion not Gaussian.
        ValueError: if ``std`` is not positive; when called, if the output is not ``(batch, K)``.

    Example:
        >>> from scoresde import VPSDE
        >>> class Network(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layers = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))
        ...
        ...     def forward(self, x, label):
        ...         return self.layers(torch.cat([x, label[:, None]], dim=1))
        >>> classifier = NoisyClassifier(Network(), VPSDE())
        >>> classifier(torch.randn(5, 2), 0.3).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        sde: GaussianSDE,
        std: float = 1.0,
        label: LabelFunction = by_half_logsnr,
    ) -> None:
        super().__init__()
        if not callable(network):
            raise TypeError(
                f"network: expected a module (x, label) -> logits, got {summarize(network)}"
            )
        self.network: Any = network
        self.sde: Any = check_gaussian(sde)
        self.std = check_positive("std", std)
        self.label = label

    def forward(self, x: Tensor, t: Time) -> Tensor:
        """Return logits ``(batch, K)`` in the dtype of ``x`` ``(batch, *event)``."""
        time = self.sde.interior(t)
        check_batch(time, x)
        alpha, sigma = self.sde.log_alpha(time).exp(), self.sde.log_sigma(time).exp()
        size = torch.sqrt(alpha**2 * self.std**2 + sigma**2)
        parameter = next(self.network.parameters(), x) if isinstance(self.network, nn.Module) else x
        label = per_sample(self.label(self.sde, time), x)
        label = label.to(torch.promote_types(parameter.dtype, torch.float32))
        logits = self.network((expand(1 / size, x) * x).to(parameter.dtype), label)
        return _check_logits("network", logits, x).to(x.dtype)


def classification_loss(
    classifier: NoisyClassifier,
    x0: Tensor,
    labels: Tensor,
    *,
    time_sampler: TimeSampler = Uniform(),
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return the cross entropy E[−log p(y|x_t)] on a batch of clean data, ``()``.

    One t and one ε are drawn for every row, as in :func:`~scoresde.dsm_loss`; the minimum over all
    functions is the exact p(y|x_t).

    Args:
        classifier: the classifier.
        x0: clean data ``(batch, *event)``.
        labels: integers ``(batch,)`` in 0 … K − 1.
        time_sampler: the distribution of t.
        generator: source of randomness; None for PyTorch's global one.

    Raises:
        TypeError: if labels are not integers.
        ValueError: if there is not one label per sample, or one is out of range.

    Example:
        >>> from scoresde import VPSDE
        >>> class Network(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(1, 2)
        ...
        ...     def forward(self, x, label):
        ...         return self.layer(x)
        >>> classifier = NoisyClassifier(Network(), VPSDE())
        >>> x, y = torch.tensor([[-1.0], [1.0]]).repeat(64, 1), torch.tensor([0, 1]).repeat(64)
        >>> optimizer = torch.optim.Adam(classifier.parameters(), lr=0.1)
        >>> for _ in range(100):
        ...     optimizer.zero_grad()
        ...     classification_loss(classifier, x, y).backward()
        ...     _ = optimizer.step()
        >>> classifier(torch.tensor([[-1.0], [1.0]]), 0.01).argmax(1)
        tensor([0, 1])

    References:
        Dhariwal & Nichol, *Diffusion models beat GANs on image synthesis*, 2021, arXiv:2105.05233,
        section 4.
    """
    check_state("x0", x0)
    t, weight = time_sampler.draw(classifier.sde, x0.shape[0], generator, x0.device)
    x = classifier.sde.perturb(x0, t, normal_like(x0, generator))
    value = _log_prob(classifier(x, t), _check_labels(labels, x0.shape[0]))
    return -(weight.to(value) * value).mean()


class ClassifierScore(PredictionScore):
    r"""∇ log p(y|x_t = x): the score of a likelihood, to be one factor of a product.

    Args:
        classifier: ``(x, t) -> logits (batch, K)``, differentiable in x: a
            :class:`NoisyClassifier`, ``Mixture.log_responsibilities``, or any function.
        sde: the diffusion of x_t.
        labels: y, an integer for all samples, or integers ``(batch,)``.

    Raises:
        TypeError: if the classifier is not callable or labels are not integers.
        ValueError: when evaluated, if there is not one label per sample, or one is out of range.

    Example:
        >>> from scoresde import VPSDE
        >>> logits = lambda x, t: torch.cat([-x, x], dim=1)  # p(1|x) = sigmoid(2x)
        >>> ClassifierScore(logits, VPSDE(), labels=1)(torch.zeros(1, 1), 0.5)
        tensor([[1.]])
    """

    def __init__(
        self, classifier: Callable[[Tensor, Tensor], Tensor], sde: SDE, labels: int | Tensor
    ) -> None:
        super().__init__(sde, SCORE)
        if not callable(classifier):
            raise TypeError(
                f"classifier: expected a function (x, t) -> logits, got {summarize(classifier)}"
            )
        self.classifier: Any = classifier
        self.labels = _check_integers(torch.as_tensor(labels))

    def output(self, x: Tensor, t: Time) -> Tensor:
        """Return ∇ log p(y|x_t), shaped like ``x``; one evaluation and its backward pass."""
        time = as_time(t, self.sde.T)
        check_batch(time, x)
        labels = _check_labels(self.labels, x.shape[0]).to(x.device)

        def log_prob(flat: Tensor) -> Tensor:
            logits = self.classifier(flat.reshape(x.shape), time)
            return _log_prob(_check_logits("classifier", logits, x), labels).unsqueeze(1)

        differentiable = torch.is_grad_enabled() and x.requires_grad
        tape = Tape(log_prob, flatten(x), differentiable, batched=False)
        (gradient,) = tape.product(torch.ones_like(tape.value).unsqueeze(0))
        score: Tensor = gradient.reshape(x.shape)
        return score

    def select(self, index: Tensor | slice) -> ClassifierScore:
        if self.labels.ndim == 0:
            return self
        index = index.to(self.labels.device) if isinstance(index, Tensor) else index
        return ClassifierScore(self.classifier, self.sde, self.labels[index])

    def extra_repr(self) -> str:
        return f"labels={self.labels.item() if self.labels.ndim == 0 else tuple(self.labels.shape)}"


def classifier_guidance(
    score: Score,
    classifier: Callable[[Tensor, Tensor], Tensor],
    labels: int | Tensor,
    scale: Weight = 1.0,
) -> Product:
    r"""Return an unconditional score guided to a class: s + w ∇ log p(y|x_t).

    With w = 1 and the exact classifier it is the conditional score. For any other w it is the score
    of p_t(x) p(y|x_t)^w at every level, which is not the diffusion of any data distribution: see
    :mod:`scoresde.guidance.product`.

    Args:
        score: the unconditional score.
        classifier: ``(x, t) -> logits (batch, K)``, such as a :class:`NoisyClassifier`.
        labels: y, an integer for all samples, or integers ``(batch,)``.
        scale: w, a number, one per sample ``(batch,)``, or a function of the noise level.

    Raises:
        TypeError: if an argument is of the wrong kind.
        ValueError: if the scale is not finite; when evaluated, if labels are out of range.

    Example:
        >>> from scoresde import FunctionScore, VPSDE
        >>> prior = FunctionScore(lambda x, t: -x, VPSDE())
        >>> guided = classifier_guidance(prior, lambda x, t: torch.cat([-x, x], dim=1), labels=1)
        >>> guided(torch.zeros(1, 1), 0.5)
        tensor([[1.]])

    References:
        Song et al. 2021, arXiv:2011.13456, section 5 and eq. 14; Dhariwal & Nichol 2021,
        arXiv:2105.05233, section 4.
    """
    require_score(score)
    return Product([score, ClassifierScore(classifier, score.sde, labels)], [1.0, scale])


def _check_integers(labels: Tensor) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(
            f"labels: expected integers, got {summarize(labels)}; convert them with labels.long()"
        )
    if labels.ndim > 1:
        raise ValueError(
            f"labels: expected one integer or shape (batch,), got {tuple(labels.shape)}"
        )
    return labels.long()


def _check_labels(labels: Tensor, batch: int) -> Tensor:
    """Return one label per row, ``(batch,)``."""
    labels = _check_integers(check_tensor("labels", labels))
    if labels.ndim and len(labels) != batch:
        raise ValueError(f"labels: expected one per sample, {batch}, got {len(labels)}")
    return labels.expand(batch)


def _check_logits(name: str, logits: Tensor, x: Tensor) -> Tensor:
    if check_tensor(name, logits).ndim != 2 or logits.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name}: expected logits of shape ({x.shape[0]}, classes), got {tuple(logits.shape)}; "
            "one row per sample"
        )
    return logits


def _log_prob(logits: Tensor, labels: Tensor) -> Tensor:
    """Return log p(y) ``(batch,)``; NaN for labels out of range under torch.func or compilation."""
    count = logits.shape[1]
    valid = (labels >= 0) & (labels < count)
    if has_concrete_value(labels) and not bool(valid.all()):
        wrong = int(labels[~valid][0])
        raise ValueError(
            f"labels: expected integers in 0 … {count - 1}, the classifier's classes, got {wrong}"
        )
    chosen = labels.clamp(0, count - 1).unsqueeze(1)
    value = torch.log_softmax(logits, dim=1).gather(1, chosen).squeeze(1)
    return torch.where(valid, value, torch.nan)
