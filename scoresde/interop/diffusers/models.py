"""Networks of diffusers as scores."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoresde._core.checks import summarize
from scoresde.interop.diffusers.schedules import forward_process
from scoresde.interop.files import (
    Weights,
    check_names_and_shapes,
    check_numbers,
    read_json,
    read_pickle,
    read_safetensors,
)
from scoresde.scores import ScoreModel
from scoresde.sdes import GaussianSDE

_WEIGHTS = "diffusion_pytorch_model"
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Network(nn.Module):
    """A network of diffusers with the interface of the library's networks, (x, label) → x-shaped.

    Output channels beyond those of ``x``, the learned variances, are dropped; see
    :func:`learned_variance`.

    Args:
        unet: the network, such as a ``UNet2DModel``.
    """

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        """Return the output of shape ``x`` ``(batch, channels, height, width)``.

        Args:
            x: images.
            label: timesteps ``(batch,)``.
            **condition: further arguments of the network, such as ``class_labels``.
        """
        output: Tensor = self.unet(x, label, return_dict=False, **condition)[0]
        return output[:, : x.shape[1]]


def wrap(unet: nn.Module, scheduler: object, *, sde: GaussianSDE | None = None) -> ScoreModel:
    """Return a network of diffusers as a score, with the SDE of its scheduler.

    Args:
        unet: a network called as ``unet(x, timestep, return_dict=False)``, such as ``UNet2DModel``.
        scheduler: the scheduler of its training, or its configuration.
        sde: an SDE that replaces the scheduler's.

    Returns:
        The model; conditions are bound by name, ``model.given(class_labels=3)``.

    Raises:
        TypeError: if ``unet`` is no module, or ``scheduler`` neither a scheduler nor a
            configuration.
        ValueError: if the library does not have the scheduler's SDE.

    Example:
        >>> class Zero(torch.nn.Module):
        ...     def forward(self, sample, timestep, return_dict=True):
        ...         return (torch.zeros_like(sample),)
        >>> model = wrap(Zero(), {"_class_name": "DDPMScheduler", "num_train_timesteps": 100})
        >>> model.sde, model.label
        (DDPM(N=100, betas=0.0001 … 0.02), IndexLabel())
    """
    if not isinstance(unet, nn.Module):
        raise TypeError(
            "unet: expected an nn.Module such as a UNet2DModel of diffusers, got "
            f"{summarize(unet)}; of a pipeline pass pipeline.unet and pipeline.scheduler"
        )
    process = forward_process(scheduler)
    return ScoreModel(
        Network(unet), process.sde if sde is None else sde, process.prediction, process.label
    )


class _VarianceChannels(Network):
    """The output channels of a network that follow its prediction."""

    def forward(self, x: Tensor, label: Tensor, **condition: Any) -> Tensor:
        output: Tensor = self.unet(x, label, return_dict=False, **condition)[0]
        return output[:, x.shape[1] :]


def learned_variance(model: ScoreModel) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return the learned variances of an improved DDPM as a function of x and t.

    The second half o in [-1, 1] of the output channels ("learned_range") interpolates the variance
    of each step between that of the posterior and β on the logarithmic scale, with
    v = (o + 1)/2.

    Args:
        model: a score of a network of diffusers with twice as many output channels as the images.

    Returns:
        v as a function (x, t) -> x-shaped, for ``discrete_bound(model, levels, …, variance=v)``.

    Raises:
        TypeError: if ``model`` is no model returned by :func:`wrap` or :func:`load`.

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
            f"{type(model).__name__}; for other networks pass v = (o + 1)/2 as a function (x, t)"
        )
    variances = ScoreModel(
        _VarianceChannels(unet), model.sde, model.prediction, model.label, model.condition
    )
    return lambda x, t: (variances.output(x, t) + 1) / 2


def load(
    folder: str | Path,
    *,
    sde: GaussianSDE | None = None,
    variant: str | None = None,
    device: torch.device | str = "cpu",
) -> ScoreModel:
    """Load a folder of diffusers with a ``UNet2DModel`` as a score; no code in it is executed.

    The folder is that of a pipeline, with ``unet/config.json``, the weights in ``unet/`` and
    ``scheduler/scheduler_config.json``, or has all three files at its top level. Diffusers builds
    the network and must be installed; the names and shapes of all weights are checked.

    Args:
        folder: a local folder; nothing is downloaded.
        sde: an SDE that replaces the scheduler's.
        variant: variant of the weights, such as ``"fp16"``; None for the default weights.
        device: the model's device.

    Returns:
        The model in evaluation mode, in float32, for images in the range of the training, usually
        [-1, 1].

    Raises:
        TypeError: if ``folder`` is no path.
        FileNotFoundError: if the folder or a file in it is missing.
        ImportError: if diffusers is not installed.
        ValueError: if a file is damaged, of another format, contains code or is a link out of the
            folder, or if the library does not have the SDE.
    """
    found = files(folder, variant)
    forward_process(found.scheduler)  # raises before the weights are read
    network = _build(found.unet, _read_weights(found.weights))
    return wrap(network, found.scheduler, sde=sde).to(device).eval()


# --- the folder


class Files(NamedTuple):
    """The content of a folder of diffusers.

    Attributes:
        scheduler: the configuration of the scheduler.
        unet: the configuration of the network.
        weights: the file of the network's weights.
    """

    scheduler: dict[str, Any]
    unet: dict[str, Any]
    weights: Path


def files(folder: str | Path, variant: str | None = None) -> Files:
    """Return the configurations in a folder of diffusers and the path of its weights.

    Raises:
        TypeError: if ``folder`` is no path.
        FileNotFoundError: if the folder or a file in it is missing.
        ValueError: if a configuration is damaged, or a file is a link out of the folder.
    """
    root = _folder(folder)
    unet, scheduler = (part if (part := root / n).is_dir() else root for n in ("unet", "scheduler"))
    stem = _WEIGHTS if variant is None else f"{_WEIGHTS}.{variant}"
    safe, pickled = unet / f"{stem}.safetensors", unet / f"{stem}.bin"
    return Files(
        read_json("scheduler", _inside(root, scheduler / "scheduler_config.json")),
        read_json("unet", _inside(root, unet / "config.json")),
        _inside(root, pickled if pickled.is_file() and not safe.is_file() else safe),
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
            f"folder: expected a local folder of diffusers, got {root}; nothing is downloaded: "
            "download it first, for instance with huggingface_hub.snapshot_download"
        )
    return root


def _inside(root: Path, file: Path) -> Path:
    """Return the path of a file; raise if it is missing or a link out of the folder.

    In the cache of Hugging Face the files of ``snapshots/<revision>`` are links into ``blobs``.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"folder: expected a file {file.relative_to(root)} in {root}, got none; a folder of "
            "diffusers has unet/ and scheduler/, each with its configuration"
        )
    allowed = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        allowed.append(root.resolve().parents[1] / "blobs")
    if not any(file.resolve().is_relative_to(parent) for parent in allowed):
        raise ValueError(
            f"folder: expected {file.relative_to(root)} to be a file in {root}, got a link that "
            "leads out of it; replace the link by a copy of the file if you trust it"
        )
    return file


def _read_weights(file: Path) -> Weights:
    """Return the weights in float32, under the names of current versions of diffusers."""
    if file.suffix == ".bin":
        content = read_pickle("unet", file, "the weights of a network")
        if not isinstance(content, dict):
            raise ValueError(
                f"unet: expected a dictionary of tensors in {file}, got {summarize(content)}; get "
                "another copy of the file"
            )
    else:
        content = read_safetensors("unet", file)
    weights = {}
    for name, value in content.items():
        weights[_current_name(str(name))] = check_numbers("unet", name, value).to(torch.float32)
    return weights


def _current_name(name: str) -> str:
    """Return a tensor's name with the attention layers' names of current versions of diffusers."""
    found = re.fullmatch(r"(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{found[1]}{_ATTENTION[found[2]]}{found[3]}" if found else name


# --- the network


def _build(config: dict[str, Any], weights: Weights) -> nn.Module:
    """Return diffusers' ``UNet2DModel`` with these weights, after comparing names and shapes."""
    unet_class = _import_unet2d()
    name = config.get("_class_name")
    if name != unet_class.__name__:
        raise ValueError(
            f"unet: expected the configuration of a {unet_class.__name__}, got {name!r}; build "
            "other networks with diffusers and pass them to wrap(unet, scheduler)"
        )
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    unknown = arguments.keys() - inspect.signature(unet_class).parameters.keys()
    if unknown:
        raise ValueError(
            f"unet: expected arguments of {unet_class.__name__}, got {min(unknown)!r}; the file "
            "may require a newer version of diffusers than the one installed"
        )
    try:
        with torch.device("meta"):
            network: nn.Module = unet_class(**arguments)
    except Exception as error:  # damaged entries can raise any exception
        raise ValueError(
            f"unet: expected a configuration that diffusers can build, got one that fails with "
            f"{type(error).__name__}: {error}; get another copy of the file"
        ) from error
    check_names_and_shapes(network, weights)
    network.load_state_dict(weights, assign=True)
    return network


def _import_unet2d() -> Any:
    """Import ``UNet2DModel`` without the warnings of diffusers about its dependencies."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("diffusers").UNet2DModel
    except (ImportError, RuntimeError) as error:  # RuntimeError: a dependency is missing
        reason = str(error).strip().split("\n")[-1]
        raise ImportError(
            "diffusers: expected it to be installed, to build the network; run pip install "
            f"diffusers ({reason})"
        ) from error
