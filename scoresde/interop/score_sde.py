r"""Checkpoints of score_sde_pytorch, the official code of score SDEs.

Such a file is a pickled dictionary of ``model`` (a state dict, names prefixed by ``module.``),
``ema`` (whose ``shadow_params`` are the averages of the trainable parameters, a list in the order
of the parameters), ``optimizer`` and ``step``.  The SDE, the label and the prediction of the
network are not in the file but follow from the configuration of the training:

================  ==============  ===========================  =========================  =======
``training.sde``  ``continuous``  SDE                          label at time t            output
================  ==============  ===========================  =========================  =======
"vpsde"           True            ``VPSDE``                    999 t                      noise
"subvpsde"        any             ``SubVPSDE``                 999 t                      noise
"vesde"           True            ``VESDE``                    σ(t)                       score
"vpsde"           False           ``VPSDE(…).discretize(N)``   index of the table         noise
"vesde"           False           ``NCSN(sigmas)``             index, 0 for the largest σ score
================  ==============  ===========================  =========================  =======

Noise is −σ(t) times the official score, with σ in float64.  Networks of VP and sub-VP take images
in [-1, 1], those of VE images in [0, 1] (``model.network.centered`` is True for the former);
samples are in the same range.

Discrete times.  Here entry i of a table belongs to t = (i + 1) T/N, since t = 0 is the data; the
official samplers evaluate the table at t (N − 1).  For VP they truncate: at t = (i + 1)/N both have
α and σ of entry i; the official label there is i + 1 − t, not rounded, and the label here is the i
of the training.  (For an official label ℓ use t = (ℓ + 1)/N.)  For VE they round: the official
entry i is at t = i/(N − 1).  Between timesteps α and σ are interpolated here and piecewise constant
there.

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
from scoresde.interop._architecture import TAPS, Architecture, infer_architecture
from scoresde.interop.files import Weights, check_names_and_shapes, check_numbers, read_pickle
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
    r"""Load a checkpoint as a score: network, SDE, label and prediction.

    Without ``model.name`` in the configuration the architecture is inferred from the names and
    shapes of the tensors (U-Nets and NCSNv2).  Options that leave no trace in the tensors (filters
    without weights, residual sums divided by √2) are then taken from the configuration, or from the
    published one.  The SDE of a network with Fourier features or of an NCSNv2 is inferred as well
    (VE); for all others ``config`` must contain ``training.sde`` and ``training.continuous``.  The
    names and shapes of all tensors are checked in every case.

    Args:
        path: the file.
        config: entries of the official configuration, flat (``{"training.sde": "vpsde", …}``) or
            nested by section (``config.to_dict()``); a subset suffices, None means no entry.
        ema: True for the averaged weights, as in published results, False for the raw ones.
        sde: an SDE that replaces the one of the table above, such as one with another ``t_min``;
            label and prediction are those of the table.
        device: the model's device.

    Returns:
        The model in evaluation mode, in float32, for images ``(batch, channels, height, width)`` in
        [-1, 1] if ``model.network.centered``, else in [0, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        TypeError: if ``config`` is no dictionary, or ``sde`` no :class:`GaussianSDE`.
        ValueError: if the file is damaged, of another format or contains code; if a tensor is
            missing, unexpected or of another shape (the message names the first such tensor); if an
            entry of the configuration is missing or unknown to the library.

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
    entries = _flatten(config)
    content = _read_checkpoint(file)
    weights = _weights(content)
    sigmas = _noise_levels(weights, entries)
    architecture = _architecture(weights, entries)
    convention = _convention(architecture, entries, sigmas)
    arguments = convention.network_defaults | _sigma_arguments(sigmas) | architecture.arguments
    with torch.device("meta"):
        meta_network = architecture.build(arguments)
    check_names_and_shapes(meta_network, weights)
    state = weights | (_averages(content, meta_network) if ema else {})
    with torch.random.fork_rng(devices=[]):  # the random initial weights are overwritten below
        network = architecture.build(arguments)
    network.load_state_dict(state)
    model = ScoreModel(
        network, convention.sde if sde is None else sde, convention.prediction, convention.label
    )
    return model.to(device).eval()


@dataclass(frozen=True)
class DescendingIndex(Label):
    """The label is the index of the nearest noise level, 0 for the largest: N − 1 − i, rounded.

    A model with this label is saved as usual and loaded with
    ``ScoreModel.load(path, label=DescendingIndex())``.
    """

    def __call__(self, sde: GaussianSDE, t: Tensor) -> Tensor:
        """Return the index at ``t``, counted from the largest noise level."""
        return (sde.index_at(sde.T) - sde.index_at(t)).round()


class CheckpointSummary(NamedTuple):
    """What can be inferred from a checkpoint without its configuration.

    Attributes:
        network: class and inferred arguments of the network.
        parameters: number of the network's parameters, trainable or not.
        sigmas: the noise levels ``(N,)``, decreasing.
        sde: the SDE, or None where it depends on the configuration.
    """

    network: str
    parameters: int
    sigmas: Tensor
    sde: GaussianSDE | None


def summarize_checkpoint(content: Mapping[str, Any]) -> CheckpointSummary:
    """Return a summary of the dictionary in a checkpoint; no network is allocated.

    Raises:
        ValueError: if its tensors belong to no network of the library.
    """
    weights = _weights(content)
    sigmas = _noise_levels(weights, {})
    architecture = _architecture(weights, {})
    with torch.device("meta"):
        network = architecture.build(_sigma_arguments(sigmas) | architecture.arguments)
    check_names_and_shapes(network, weights)
    return CheckpointSummary(
        str(architecture),
        sum(parameter.numel() for parameter in network.parameters()),
        sigmas,
        _convention(architecture, {}, sigmas).sde if architecture.training else None,
    )


# --- the file


def _read_checkpoint(path: Path) -> Mapping[str, Any]:
    content = read_pickle("path", path, "a checkpoint of score_sde_pytorch")
    if not isinstance(content, dict) or not {"model", "ema"} & content.keys():
        found = sorted(map(str, content)) if isinstance(content, dict) else summarize(content)
        raise ValueError(
            f"path: expected a dictionary with 'model' and 'ema', got {path} with {found}; "
            "the file is no checkpoint of score_sde_pytorch"
        )
    return content


def _entry_of(content: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return an entry of a dictionary in the file; raise if it is missing or no ``kind``."""
    value = content.get(name)
    if not isinstance(value, kind):
        found = summarize(value) if name in content else "none"
        raise ValueError(
            f"path: expected an entry {name!r} ({kind.__name__}) in the file, got {found}; "
            "ema=False does not need the averages"
        )
    return value


def _weights(content: Mapping[str, Any]) -> Weights:
    """Return the tensors of ``model``, without the prefix of data-parallel training."""
    weights = {}
    for key, value in _entry_of(content, "model", dict).items():
        name = str(key).removeprefix("module.")
        weights[name] = check_numbers("model", name, value)
    return weights


def _averages(content: Mapping[str, Any], network: nn.Module) -> Weights:
    """Return the averages by name; the list has the order of the trainable parameters."""
    shadow = _entry_of(_entry_of(content, "ema", dict), "shadow_params", list)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if len(shadow) != len(trained):
        raise ValueError(
            f"ema: expected {len(trained)} averages, one per trainable parameter, got "
            f"{len(shadow)}; ema=False loads the raw weights"
        )
    for index, (value, (name, parameter)) in enumerate(zip(shadow, trained.items(), strict=True)):
        if not isinstance(value, Tensor) or value.shape != parameter.shape:
            raise ValueError(
                f"ema: expected entry {index} to be the average of {name}, of shape "
                f"{tuple(parameter.shape)}, got {summarize(value)}; ema=False loads the raw weights"
            )
    return {n: check_numbers("ema", n, value) for n, value in zip(trained, shadow, strict=True)}


# --- the configuration


def _flatten(config: Config | None) -> dict[str, Any]:
    """Return the entries of a flat or nested configuration by ``section.key``."""
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


def _noise_levels(weights: Weights, entries: Config) -> Tensor:
    """Return the noise levels in the file, decreasing.

    Raises:
        ValueError: if the file has none, or others than the configuration.
    """
    sigmas = weights.get("sigmas")
    if sigmas is None or sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas > 0).all()):
        found = "none" if sigmas is None else summarize(sigmas)
        raise ValueError(
            f"model: expected a tensor 'sigmas' of positive noise levels in the file, got {found}; "
            "every network of score_sde_pytorch has one"
        )
    for key, level in (("model.sigma_max", sigmas[0]), ("model.sigma_min", sigmas[-1])):
        if not math.isclose(entries.get(key, float(level)), float(level), rel_tol=1e-6):
            raise ValueError(
                f"config: expected {key} = {float(level):g} as in the file's 'sigmas', got "
                f"{entries[key]!r}; configuration and file belong to different trainings"
            )
    return sigmas


def _sigma_arguments(sigmas: Tensor) -> dict[str, Any]:
    """Return a network's arguments for its noise levels, rounded to the digits that are exact."""
    low, high = (float(f"{float(level):.10g}") for level in (sigmas[-1], sigmas[0]))
    return {"sigma_min": low, "sigma_max": high, "scales": len(sigmas)}


# --- SDE, label and prediction


class _Convention(NamedTuple):
    sde: GaussianSDE
    prediction: Prediction
    label: Label
    network_defaults: dict[str, Any]
    """Arguments of the network, where the configuration has no entry."""


_CENTERED: dict[str, Any] = {"centered": True, "scale_by_sigma": False}
_BY_SIGMA: dict[str, Any] = {"centered": False, "scale_by_sigma": True}


def _convention(architecture: Architecture, entries: Config, sigmas: Tensor) -> _Convention:
    """Return the row of the module's table that belongs to a configuration."""
    entries = architecture.training | dict(entries)
    kind, continuous = (_required(entries, f"training.{key}") for key in ("sde", "continuous"))
    betas = entries.get("model.beta_min", 0.1), entries.get("model.beta_max", 20.0)
    match kind, bool(continuous):
        case "vpsde", True:
            return _Convention(VPSDE(*betas), NOISE, TimeLabel(999.0), _CENTERED)
        case "vpsde", False:
            return _Convention(VPSDE(*betas).discretize(len(sigmas)), NOISE, by_index, _CENTERED)
        case "subvpsde", _:
            return _Convention(SubVPSDE(*betas), NOISE, TimeLabel(999.0), _CENTERED)
        case "vesde", True:
            ends = _sigma_arguments(sigmas)
            sde = VESDE(ends["sigma_min"], ends["sigma_max"])
            return _Convention(sde, SCORE, by_sigma, _BY_SIGMA)
        case "vesde", False:
            return _Convention(NCSN(sigmas), SCORE, DescendingIndex(), _BY_SIGMA)
    raise ValueError(
        f"config: expected training.sde to be 'vpsde', 'subvpsde' or 'vesde', got {kind!r}; these "
        "are the names of the official configurations"
    )


def _required(entries: Config, key: str) -> Any:
    if key not in entries:
        raise ValueError(
            f"config: expected an entry {key!r}, got {sorted(entries) or 'none'}; the SDE of the "
            "training is not stored in the file: pass for instance "
            "config={'training.sde': 'vpsde', 'training.continuous': True}"
        )
    return entries[key]


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

_SUPPORTED = {
    "model.normalization": ("GroupNorm", "InstanceNorm++"),
    "model.nonlinearity": ("swish", "elu"),
    "model.resblock_type": ("biggan", "ddpm"),
    "model.embedding_type": ("fourier", "positional"),
    "model.conditional": (True,),
    "model.resamp_with_conv": (True,),
}


def _architecture(weights: Weights, entries: Config) -> Architecture:
    """Return the architecture of the configuration, or else the one inferred from the tensors."""
    for key, values in _SUPPORTED.items():
        if key in entries and entries[key] not in values:
            raise ValueError(
                f"config: expected {key} to be one of {values}, got {entries[key]!r}; the library "
                "has no network with other values"
            )
    name = entries.get("model.name")
    if name is None:
        architecture = infer_architecture(weights)
    elif name in _NETWORKS:
        network, arguments = _NETWORKS[name]
        architecture = Architecture(network, arguments, {})
    else:
        raise ValueError(
            f"config: expected model.name to be one of {', '.join(_NETWORKS)}, got {name!r}; other "
            "networks are not part of the library"
        )
    return architecture._replace(arguments=architecture.arguments | _arguments(entries))


def _arguments(entries: Config) -> dict[str, Any]:
    """Return the constructor's arguments that the configuration determines."""
    found = {argument: entries[key] for key, argument in _ENTRIES.items() if key in entries}
    if {"data.image_size", "model.attn_resolutions", "model.ch_mult"} <= entries.keys():
        sizes = [entries["data.image_size"] // 2**i for i in range(len(entries["model.ch_mult"]))]
        attended = entries["model.attn_resolutions"]
        found["attention"] = [level for level, size in enumerate(sizes) if size in attended]
    if "model.resblock_type" in entries:
        found["biggan"] = entries["model.resblock_type"] == "biggan"
    if "model.fir" in entries:
        found["taps"] = entries.get("model.fir_kernel", TAPS) if entries["model.fir"] else None
    if "model.embedding_type" in entries:
        fourier = entries["model.embedding_type"] == "fourier"
        found["fourier_scale"] = (
            float(entries.get("model.fourier_scale", 16.0)) if fourier else None
        )
    return found
