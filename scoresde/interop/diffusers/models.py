"""Networks of diffusers as scores."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde._core.checks import summarize
from scoresde.interop._files import (
    Weights,
    check_names_and_shapes,
    check_numbers,
    read_json,
    read_pickle,
    read_safetensors,
)
from scoresde.interop.diffusers.schedules import process
from scoresde.scores import ScoreModel
from scoresde.sdes import GaussianSDE

_WEIGHTS = "diffusion_pytorch_model"
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Network(nn.Module):
    """A network of diffusers, called as networks are here: (x, label) → x-shaped.

    Channels beyond those of ``x``, where a network tells variances, are left out here; see
    :func:`learned_variance`.

    Args:
        unet: such as ``UNet2DModel``, with weights.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        """Return the output of shape ``x`` ``(batch, channels, height, width)``.

        Args:
            x: images.
            label: timesteps ``(batch,)``.
            **condition: what the network takes besides, such as ``class_labels``.
        """
        return self.unet(x, label, return_dict=False, **condition)[0][:, : x.shape[1]]


def wrap(unet: nn.Module, scheduler: object, *, sde: GaussianSDE | None = None) -> ScoreModel:
    """Return a network of diffusers as a score, with the diffusion that its scheduler tells.

    Args:
        unet: a network called as ``unet(x, timestep, return_dict=False)``, such as ``UNet2DModel``.
        scheduler: the scheduler of its training, or its configuration.
        sde: a diffusion to use in place of the scheduler's.

    Returns:
        The model; conditions are bound by name, ``model.given(class_labels=3)``.

    Raises:
        TypeError: if ``unet`` is no module, or ``scheduler`` neither of the two.
        ValueError: if the library does not have the scheduler's diffusion.

    Example:
        >>> class Silent(torch.nn.Module):
        ...     def forward(self, sample, timestep, return_dict=True):
        ...         return (torch.zeros_like(sample),)
        >>> model = wrap(Silent(), {"_class_name": "DDPMScheduler", "num_train_timesteps": 100})
        >>> model.sde, model.label
        (DDPM(N=100, betas=0.0001 … 0.02), IndexLabel())
    """
    if not isinstance(unet, nn.Module):
        raise TypeError(
            f"unet: expected a network of diffusers such as UNet2DModel, got {summarize(unet)}; for "
            "a whole pipeline pass pipeline.unet and pipeline.scheduler"
        )
    told = process(scheduler)
    return ScoreModel(Network(unet), told.sde if sde is None else sde, told.prediction, told.label)


class _Variances(Network):
    """What a network tells beyond its prediction."""

    def forward(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        """Return the channels that follow those of shape ``x``."""
        return self.unet(x, label, return_dict=False, **condition)[0][:, x.shape[1] :]


def learned_variance(model: ScoreModel) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return the variances that a network of improved DDPM tells beside its prediction.

    Its second output o in [-1, 1] chooses each step's variance between the posterior's and β, on
    the logarithmic scale ("learned_range"): v = (o + 1)/2.

    Args:
        model: a network of diffusers with twice as many channels as its images have.

    Returns:
        v as a function (x, t) -> x-shaped, for ``discrete_bound(model, levels, …, variance=v)``.

    Raises:
        TypeError: if ``model`` holds no network of diffusers.

    Example:
        >>> class Constant(torch.nn.Module):
        ...     def forward(self, sample, timestep, return_dict=True):
        ...         return (torch.cat([0 * sample, 0 * sample + 0.5], dim=1),)
        >>> model = wrap(Constant(), {"_class_name": "DDPMScheduler"})
        >>> learned_variance(model)(torch.zeros(1, 1, 2, 2), 0.5)
        tensor([[[[0.7500, 0.7500],
                  [0.7500, 0.7500]]]])

    References:
        Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    unet = getattr(getattr(model, "network", None), "unet", None)
    if unet is None:
        raise TypeError(
            f"model: expected a network of diffusers such as wrap(unet, scheduler), got "
            f"{type(model).__name__}; others' second outputs are v = (o + 1)/2, too"
        )
    second = ScoreModel(_Variances(unet), model.sde, model.prediction, model.label, model.condition)
    return lambda x, t: (second.output(x, t) + 1) / 2


def load(
    folder: str | Path,
    *,
    sde: GaussianSDE | None = None,
    variant: str | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    """Read a folder of diffusers with a ``UNet2DModel`` as a score; nothing in it is executed.

    The folder is a pipeline's, with ``unet/config.json``, the weights beside it, and
    ``scheduler/scheduler_config.json``, or has all three files side by side. The network is built
    by diffusers, which has to be installed; of the weights every name and shape is checked.

    Args:
        folder: the folder, on this machine; nothing is downloaded.
        sde: a diffusion to use in place of the one that the scheduler tells.
        variant: which weights, such as ``"fp16"``; the plain ones if None.
        device: where to put the model.

    Returns:
        The model in evaluation mode, in float32, for images in the range of the training, usually
        [-1, 1].

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ImportError: if diffusers is not installed.
        ValueError: if a file is damaged, foreign, holds more than data or leads out of the folder,
            or if the library does not have the diffusion.
    """
    found = files(folder, variant)
    process(found.scheduler)
    network = _build(found.unet, predict(found.weights))
    return wrap(network, found.scheduler, sde=sde).to(device).eval()


# --- the folder


class Files(NamedTuple):
    """What a folder holds: two configurations, and where the weights are."""

    scheduler: dict[str, Any]
    unet: dict[str, Any]
    weights: Path


def files(folder: str | Path, variant: str | None = None) -> Files:
    """Return what a folder of diffusers holds; the weights are not read.

    Raises:
        FileNotFoundError: if the folder or a file in it is missing.
        ValueError: if a configuration is damaged, or a file leads out of the folder.
    """
    root = _folder(folder)
    unet, scheduler = (part if (part := root / n).is_dir() else root for n in ("unet", "scheduler"))
    stem = _WEIGHTS if variant is None else f"{_WEIGHTS}.{variant}"
    safe, pickled = unet / f"{stem}.safetensors", unet / f"{stem}.bin"
    return Files(
        read_json("scheduler", _own(root, scheduler / "scheduler_config.json")),
        read_json("unet", _own(root, unet / "config.json")),
        _own(root, pickled if pickled.is_file() and not safe.is_file() else safe),
    )


def _folder(folder: object) -> Path:
    if not isinstance(folder, str | Path):
        raise TypeError(
            f"folder: expected the path of a folder, got {summarize(folder)}; pass a string or a "
            "Path"
        )
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(
            f"folder: expected a folder of diffusers on this machine, got {root}; nothing is "
            "downloaded: fetch it first, for instance with huggingface_hub.snapshot_download"
        )
    return root


def _own(root: Path, file: Path) -> Path:
    """Return a file that has to be there and lie in the folder, links resolved.

    The cache of Hugging Face keeps the files of ``snapshots/<revision>`` in ``blobs`` beside it.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"folder: expected a file {file.relative_to(root)} in {root}, got none; a folder of "
            "diffusers has unet/ and scheduler/, each with its configuration"
        )
    homes = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        homes.append(root.resolve().parents[1] / "blobs")
    if not any(file.resolve().is_relative_to(home) for home in homes):
        raise ValueError(
            f"folder: expected {file.relative_to(root)} to lie in {root}, got a link that leads out"
            " of it; put a copy of the file there if you trust it"
        )
    return file


def predict(file: Path) -> Weights:
    """Return the weights in float32, under today's names."""
    if file.suffix == ".bin":
        content = read_pickle("unet", file, "the weights of a network")
        if not isinstance(content, dict):
            raise ValueError(
                f"unet: expected a dictionary of tensors in {file}, got {summarize(content)}; take "
                "another copy"
            )
    else:
        content = read_safetensors("unet", file)
    weights = {}
    for name, value in content.items():
        weights[_renamed(str(name))] = check_numbers("unet", name, value).to(torch.float32)
    return weights


def _renamed(name: str) -> str:
    """Return the name that a tensor of an attention layer has today."""
    found = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{found[1]}{_ATTENTION[found[2]]}{found[3]}" if found else name


# --- the network


def _build(config: dict[str, Any], weights: Weights) -> nn.Module:
    """Return diffusers' ``UNet2DModel`` with these weights, built only if they are its own."""
    design = _unet2d()
    name = config.get("_class_name")
    if name != design.__name__:
        raise ValueError(
            f"unet: expected the configuration of a {design.__name__}, got {name!r}; build other "
            "networks with diffusers and hand them to wrap(unet, scheduler)"
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = arguments.keys() - inspect.signature(design).parameters.keys()
    if unknown:
        raise ValueError(
            f"unet: expected entries of a {design.__name__}, got {min(unknown)!r} as well; the "
            "file may be of a newer diffusers than the one installed"
        )
    try:
        with torch.device("meta"):
            network = design(**arguments)
    except Exception as error:  # whatever the entries make of the constructor
        raise ValueError(
            f"unet: expected a configuration that diffusers can build, got one that fails with "
            f"{type(error).__name__}: {error}; take another copy"
        ) from error
    check_names_and_shapes(network, weights)
    network.load_state_dict(weights, assign=True)
    return network


def _unet2d() -> Any:
    """Import diffusers, which takes seconds and may warn of its own dependencies."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from diffusers import UNet2DModel
    except (ImportError, RuntimeError) as error:  # it turns errors of dependencies into the latter
        reason = str(error).strip().split("\n")[-1]
        raise ImportError(
            "diffusers is needed to build the networks of its folders; install it with "
            f"pip install diffusers ({reason})"
        ) from error
    return UNet2DModel
