"""Classifier-free guidance: conditional and unconditional score of one network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scoresde.guidance.product import Product, Weight, autoguidance
from scoresde.scores import ScoreModel


def classifier_free_guidance(
    model: ScoreModel, weight: Weight, *, null: Mapping[str, Any] | None = None
) -> Product:
    r"""Return a conditional score guided by the unconditional one of the same network.

    ::

        s = s(x|∅) + w (s(x|y) − s(x|∅)),

    so that w = 1 is the conditional score and w = 0 the unconditional one. (The w of Ho & Salimans
    is w − 1 here.) The network must be trained with its condition dropped at random, as by
    :func:`~scoresde.fit` with ``condition_dropout``. Both scores are evaluated in one batch of
    twice the size, or only one of them if w is 1 or 0.

    Args:
        model: the model with its condition bound: ``model.given(classes=labels)``.
        weight: w, a number, one per sample ``(batch,)``, or a function of the noise level such as
            :class:`~scoresde.guidance.GuidanceInterval`.
        null: a null value for each condition that is dropped in s(x|∅). By default all bound
            conditions, with the network's attribute of the condition's name as null value, which is
            the null class of this library's networks.

    Returns:
        The guided score; see :class:`~scoresde.guidance.Product` for the distribution of its
        samples.

    Raises:
        TypeError: if the model takes no condition.
        ValueError: if no condition is bound, or a null value is not known.

    Example:
        >>> from scoresde import MLP, ScoreModel, VPSDE, sample
        >>> model = ScoreModel(MLP((2,), width=16, depth=1, classes=10), VPSDE())
        >>> score = classifier_free_guidance(
        ...     model.given(classes=torch.tensor([3, 3, 7])), weight=2.0
        ... )
        >>> sample(score, (3, 2), steps=5).shape
        torch.Size([3, 2])

    References:
        Ho & Salimans, *Classifier-free diffusion guidance*, 2022, arXiv:2207.12598, eq. 6.
    """
    if not hasattr(model, "given") or not hasattr(model, "condition"):
        raise TypeError(
            f"model: expected a ScoreModel with a condition, got {type(model).__name__}; use "
            "autoguidance(score, base, weight) for two scores of any kind"
        )
    if not model.condition:
        raise ValueError(
            "model: expected a condition bound to it, got none; pass model.given(classes=labels)"
        )
    nulls = dict.fromkeys(model.condition) if null is None else dict(null)
    unknown = sorted(nulls.keys() - model.condition.keys())
    if unknown or not nulls:
        raise ValueError(
            f"null: expected some of the bound conditions {sorted(model.condition)}, got "
            f"{unknown or 'none'}; bind them with model.given(…)"
        )
    null_condition = {
        key: _null_value(key, model.condition[key], value, model.network)
        for key, value in nulls.items()
    }
    return autoguidance(model, model.given(**null_condition), weight)


def _null_value(key: str, bound: Any, null: Any, network: Any) -> Any:
    """Return the null value of a condition, in the shape of the bound value."""
    value = getattr(network, key, None) if null is None else null
    if value is None:
        raise ValueError(
            f"null: expected the null value of {key}, got None, and the network has no attribute "
            f"{key!r} to take it from; pass null={{{key!r}: …}}"
        )
    if isinstance(bound, Tensor) and not isinstance(value, Tensor):
        return torch.full_like(bound, value)
    return value
