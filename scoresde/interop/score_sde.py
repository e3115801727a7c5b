r"""Checkpoints of score_sde_pytorch, the official code of score SDEs.

Such a file is a pickled dictionary of ``model`` (a state dict, names prefixed by ``module.``),
``ema`` (whose ``shadow_params`` are the averages of the trainable parameters: a bare list in their
order), ``optimizer`` and ``step``.  It holds weights, not what they mean; that is a convention of
the training, of which the configuration tells:

| ``training.sde`` | ``continuous`` | diffusion | label at time t | output |
|---|---|---|---|---|
| "vpsde" | True | ``VPSDE`` | 999 t | noise |
| "subvpsde" | any | ``SubVPSDE`` | 999 t | noise |
| "vesde" | True | ``VESDE`` | σ(t) | score |
| "vpsde" | False | ``VPSDE(…).discretize(N)`` | index of the table | noise |
| "vesde" | False | ``NCSN(sigmas)`` | index, 0 for the largest σ | score |

Noise is the official −σ(t) times score, with σ in float64.  Networks of VP and sub-VP see images in
[-1, 1], those of VE images in [0, 1] (``model.network.centered`` says which); samples come in the
same range.

Discrete times.  Here entry i of a table belongs to t = (i + 1) T/N, since t = 0 is the data; the
official samplers read the table at t (N − 1).  VP cuts the fraction off: at t = (i + 1)/N both have
α and σ of entry i; the label there is i + 1 − t, not rounded, and here the i of the training.  (For
an official label ℓ take t = (ℓ + 1)/N.)  VE rounds: entry i there is at t = i/(N − 1).  Between
knots α and σ move on here and jump there.

References:
    Song et al., *Score-based generative modeling through stochastic differential equations*, 2021,
    arXiv:2011.13456; its code, github.com/yang-song/score_sde_pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde._core.checks import check_file, summarize
from scoresde.interop._architecture import TAPS, Design, inferred
from scoresde.interop._files import Weights, check_names_and_shapes, check_numbers, read_pickle
from scoresde.networks import DDPMUNet, NCSNpp, NCSNv2
from scoresde.scores import ScoreModel
from scoresde.scores.labels import Label, TimeLabel, by_index, by_sigma
from scoresde.scores.predictions import NOISE, SCORE, Prediction
from scoresde.sdes import NCSN, VESDE, VPSDE, GaussianSDE, SubVPSDE

__all__ = ["DescendingIndex", "load"]

Config = Mapping[str, Any]


def load(
    path: str | Path,
    config: Config | None = None,
    *,
    ema: bool = True,
    sde: GaussianSDE | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    r"""Read a checkpoint as a score: network, diffusion, label and prediction.

    Without ``model.name`` in the configuration the architecture is inferred from the names and
    shapes of the tensors (U-Nets and NCSNv2).  What these do not show (filters without weights,
    residual sums divided by √2) is then taken from the configuration or else as published.  The
    diffusion of a network with Fourier features or of an NCSNv2 is inferred as well (VE); for all
    others ``training.sde`` and ``training.continuous`` must be told.  Either way every name and
    shape is checked.

    Args:
        path: the file.
        config: entries of the official configuration, flat (``{"training.sde": "vpsde", …}``) or
            nested by section (``config.to_dict()``); a part of them will do, None is no entry.
        ema: whether to take the averaged weights, as published results do, or the raw ones.
        sde: the diffusion to use in place of the one that the table above tells, such as one with
            another ``t_min``; label and prediction stay.
        device: where to put the model.

    Returns:
        The model in evaluation mode, in float32, for images ``(batch, channels, height, width)`` in
        [-1, 1] if ``model.network.centered``, else in [0, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``config`` is no dictionary.
        ValueError: if the file is damaged, foreign or holds more than data; if a tensor is missing,
            unexpected or of another shape (the first is named); or if the configuration does not
            tell enough, or what the library does not have.

    Example:
        >>> import tempfile
        >>> network = NCSNpp(width=8, multipliers=(1, 2), blocks=1, fourier_scale=16.0)
        >>> average = [p.detach() for p in network.parameters() if p.requires_grad]
        >>> state = {f"module.{name}": tensor for name, tensor in network.state_dict().items()}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "checkpoint.pth"
        ...     torch.save({"model": state, "ema": {"shadow_params": average}}, path)
        ...     model = load(path)
        >>> model.sde, model.label
        (VESDE(sigma_min=0.01, sigma_max=50), SigmaLabel())
        >>> model(torch.rand(2, 3, 8, 8), 0.5).shape
        torch.Size([2, 3, 8, 8])
    """
    file = check_file("path", path)
    told = _flat(config)
    content = predict(file)
    weights = _weights(content)
    ladder = _ladder(weights, told)
    design = _design(weights, told)
    process = _process(design, told, ladder)
    arguments = process.customs | _ends(ladder) | design.arguments
    with torch.device("meta"):
        plan = design.build(arguments)
    check_names_and_shapes(plan, weights)
    state = weights | (_averages(content, plan) if ema else {})
    with torch.random.fork_rng(devices=[]):  # the draws of a constructor are replaced at once
        network = design.build(arguments)
    network.load_state_dict(state)
    model = ScoreModel(
        network, process.sde if sde is None else sde, process.prediction, process.label
    )
    return model.to(device).eval()


@dataclass(frozen=True)
class DescendingIndex(Label):
    """The label is the index of the nearest noise level, 0 for the largest: N − 1 − i, rounded.

    A model with this label is saved like any other, and read with
    ``ScoreModel.load(path, label=DescendingIndex())``.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return the index at ``t``, counted from the noise end."""
        return (sde.index_at(sde.T) - sde.index_at(t)).round()


class Contents(NamedTuple):
    """What a checkpoint shows of itself.

    Attributes:
        network: its class and arguments, as far as tensors show them.
        parameters: how many numbers the network has, learned or not.
        ladder: its noise levels ``(N,)``, the largest first.
        sde: the diffusion, or None if only the configuration of the training tells it.
    """

    network: str
    parameters: int
    ladder: Tensor
    sde: GaussianSDE | None


def contents(state: Mapping[str, Any]) -> Contents:
    """Return what the dictionary in a checkpoint shows, without making a network.

    Raises:
        ValueError: if its tensors are those of no network here.
    """
    weights = _weights(state)
    ladder = _ladder(weights, {})
    design = _design(weights, {})
    with torch.device("meta"):
        network = design.build(_ends(ladder) | design.arguments)
    check_names_and_shapes(network, weights)
    return Contents(
        str(design),
        sum(parameter.numel() for parameter in network.parameters()),
        ladder,
        _process(design, {}, ladder).sde if design.training else None,
    )


# --- the file


def predict(path: Path) -> Mapping[str, Any]:
    content = read_pickle("path", path, "a checkpoint of score_sde_pytorch")
    if not isinstance(content, dict) or not {"model", "ema"} & content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else summarize(content)
        raise ValueError(
            f"path: expected a dictionary with 'model' and 'ema', got {path} with {found}; "
            "checkpoints of other programs need their own reader"
        )
    return content


def _part(content: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return an entry of a dictionary of the file, or say that it isn't there."""
    value = content.get(name)
    if not isinstance(value, kind):
        came = summarize(value) if name in content else "none"
        raise ValueError(
            f"path: expected an entry {name!r} ({kind.__name__}) in the file, got {came}; "
            "with ema=False the averages are not needed"
        )
    return value


def _weights(content: Mapping[str, Any]) -> Weights:
    """Return the tensors of ``model``, without the prefix of data-parallel training."""
    weights = {}
    for key, value in _part(content, "model", dict).items():
        name = str(key).removeprefix("module.")
        weights[name] = check_numbers("model", name, value)
    return weights


def _averages(content: Mapping[str, Any], network: nn.Module) -> Weights:
    """Return the averages by name: the list has the order of the trainable parameters."""
    shadow = _part(_part(content, "ema", dict), "shadow_params", list)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if len(shadow) != len(trained):
        raise ValueError(
            f"ema: expected {len(trained)} averages, one per trainable parameter, got "
            f"{len(shadow)}; ema=False reads the raw weights"
        )
    for index, (value, (name, parameter)) in enumerate(zip(shadow, trained.items(), strict=True)):
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            raise ValueError(
                f"ema: expected entry {index} to be the average of {name}, of shape "
                f"{tuple(parameter.shape)}, got {summarize(value)}; ema=False reads the raw weights"
            )
    return {n: check_numbers("ema", n, value) for n, value in zip(trained, shadow, strict=True)}


# --- the configuration


def _flat(config: Config | None) -> dict[str, Any]:
    """Return the entries as ``section.key``, whichever way they come."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise TypeError(
            "config: expected a dictionary of official entries such as "
            f"{{'training.sde': 'vpsde'}}, got {summarize(config)}; call config.to_dict()"
        )
    flat: dict[str, Any] = {}
    for key, value in config.items():
        inner = value.items() if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": v for name, v in inner}
    return flat


def _ladder(weights: Weights, told: Config) -> Tensor:
    """Return the ladder of the file, largest first, unless it is none or not the one told."""
    ladder = weights.get("sigmas")
    if ladder is None or ladder.ndim != 1 or len(ladder) < 2 or not bool((ladder > 0).all()):
        came = "none" if ladder is None else summarize(ladder)
        raise ValueError(
            f"model: expected a tensor 'sigmas' of positive noise levels in the file, got {came}; "
            "every network of score_sde_pytorch has one"
        )
    for key, level in (("model.sigma_max", ladder[0]), ("model.sigma_min", ladder[-1])):
        if not math.isclose(told.get(key, float(level)), float(level), rel_tol=1e-6):
            raise ValueError(
                f"config: expected {key} = {float(level):g} as in the file's 'sigmas', got "
                f"{told[key]!r}; configuration and file belong to different trainings"
            )
    return ladder


def _ends(ladder: Tensor) -> dict[str, Any]:
    """Return a network's arguments for its ladder; the logarithms' last digits are noise."""
    low, high = (float(f"{float(level):.10g}") for level in (ladder[-1], ladder[0]))
    return {"sigma_min": low, "sigma_max": high, "scales": len(ladder)}


# --- the diffusion, and how the network is told of it


class _Process(NamedTuple):
    sde: GaussianSDE
    prediction: Prediction
    label: Label
    customs: dict[str, Any]
    """Arguments of the networks that go with it, where nothing else is told."""


_CENTERED: dict[str, Any] = {"centered": True, "scale_by_sigma": False}
_BY_SIGMA: dict[str, Any] = {"centered": False, "scale_by_sigma": True}


def _process(design: Design, told: Config, ladder: Tensor) -> _Process:
    told = design.training | dict(told)
    kind, continuous = (_entry(told, f"training.{key}") for key in ("sde", "continuous"))
    betas = told.get("model.beta_min", 0.1), told.get("model.beta_max", 20.0)
    match kind, bool(continuous):
        case "vpsde", True:
            return _Process(VPSDE(*betas), NOISE, TimeLabel(999.0), _CENTERED)
        case "vpsde", False:
            return _Process(VPSDE(*betas).discretize(len(ladder)), NOISE, by_index, _CENTERED)
        case "subvpsde", _:
            return _Process(SubVPSDE(*betas), NOISE, TimeLabel(999.0), _CENTERED)
        case "vesde", True:
            ends = _ends(ladder)
            return _Process(VESDE(ends["sigma_min"], ends["sigma_max"]), SCORE, by_sigma, _BY_SIGMA)
        case "vesde", False:
            return _Process(NCSN(ladder), SCORE, DescendingIndex(), _BY_SIGMA)
    raise ValueError(
        f"config: expected training.sde to be 'vpsde', 'subvpsde' or 'vesde', got {kind!r}; these "
        "are the names of the official configurations"
    )


def _entry(told: Config, key: str) -> Any:
    if key not in told:
        raise ValueError(
            f"config: expected an entry {key!r}, got {sorted(told) or 'none'}; the file does not "
            "tell how this network was trained: pass for instance "
            "config={'training.sde': 'vpsde', 'training.continuous': True}"
        )
    return told[key]


# --- the architecture


_NETWORKS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "ncsnpp": (NCSNpp, {}),
    "ddpm": (DDPMUNet, {}),
    "ncsnv2_64": (NCSNv2, {"design": 64}),
    "ncsnv2_128": (NCSNv2, {"design": 128}),
    "ncsnv2_256": (NCSNv2, {"design": 256}),
}

_ENTRIES = {
    "data.num_channels": "channels",
    "data.channels": "channels",
    "data.centered": "centered",
    "model.nf": "width",
    "model.ch_mult": "multipliers",
    "model.num_res_blocks": "blocks",
    "model.dropout": "dropout",
    "model.scale_by_sigma": "scale_by_sigma",
    "model.num_scales": "scales",
    "model.progressive_input": "progressive_input",
    "model.progressive": "progressive",
    "model.progressive_combine": "combine",
    "model.skip_rescale": "rescale",
    "model.init_scale": "init_scale",
}

_ONLY = {
    "model.normalization": ("GroupNorm", "InstanceNorm++"),
    "model.nonlinearity": ("swish", "elu"),
    "model.resblock_type": ("biggan", "ddpm"),
    "model.embedding_type": ("fourier", "positional"),
    "model.conditional": (True,),
    "model.resamp_with_conv": (True,),
}


def _design(weights: Weights, told: Config) -> Design:
    """Return the architecture that is told by name, or else the one that the tensors show."""
    for key, values in _ONLY.items():
        if key in told and told[key] not in values:
            raise ValueError(f"config: expected {key} to be one of {values}, got {told[key]!r}")
    name = told.get("model.name")
    if name is None:
        seen = inferred(weights)
    elif name in _NETWORKS:
        network, arguments = _NETWORKS[name]
        seen = Design(network, arguments, {})
    else:
        raise ValueError(
            f"config: expected model.name to be one of {', '.join(_NETWORKS)}, got {name!r}; other "
            "networks are not part of the library"
        )
    return seen._replace(arguments=seen.arguments | _arguments(told))


def _arguments(told: Config) -> dict[str, Any]:
    """Return the constructors' arguments for the entries that are told."""
    found = {argument: told[key] for key, argument in _ENTRIES.items() if key in told}
    if {"data.image_size", "model.attn_resolutions", "model.ch_mult"} <= told.keys():
        sizes = [told["data.image_size"] // 2**i for i in range(len(told["model.ch_mult"]))]
        attended = told["model.attn_resolutions"]
        found["attention"] = [level for level, size in enumerate(sizes) if size in attended]
    if "model.resblock_type" in told:
        found["biggan"] = told["model.resblock_type"] == "biggan"
    if "model.fir" in told:
        found["taps"] = told.get("model.fir_kernel", TAPS) if told["model.fir"] else None
    if "model.embedding_type" in told:
        fourier = told["model.embedding_type"] == "fourier"
        found["fourier_scale"] = float(told.get("model.fourier_scale", 16.0)) if fourier else None
    return found
