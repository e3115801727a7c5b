"""The architecture of a network of score_sde_pytorch, inferred from its tensors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from scoresde.interop.files import Weights
from scoresde.networks import DDPMUNet, NCSNpp, NCSNv2

TAPS = (1.0, 3.0, 3.0, 1.0)
"""The published filter of the up- and downsampling layers."""


class Architecture(NamedTuple):
    """A network's class and its arguments.

    Attributes:
        network: the class.
        arguments: arguments of its constructor.
        training: entries of the training configuration that the architecture implies.
    """

    network: type[nn.Module]
    arguments: dict[str, Any]
    training: dict[str, Any]

    def build(self, arguments: dict[str, Any]) -> nn.Module:
        """Return the network, made with those of the arguments that its constructor takes."""
        return self.network(**self._accepted(arguments))

    def __str__(self) -> str:
        """Return the constructor call as Python code."""
        arguments = self._accepted(self.arguments).items()
        return (
            f"{self.network.__name__}({', '.join(f'{key}={value!r}' for key, value in arguments)})"
        )

    def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self.network).parameters
        return {key: value for key, value in arguments.items() if key in parameters}


def infer_architecture(weights: Weights) -> Architecture:
    """Return the architecture that has tensors of these names and shapes.

    Raises:
        ValueError: if the tensors are neither those of a U-Net nor those of an NCSNv2.
    """
    return _refinenet(weights) if "begin_conv.weight" in weights else _unet(weights)


def _refinenet(weights: Weights) -> Architecture:
    """Return the NCSNv2 whose tensors these are."""
    width, channels = weights["begin_conv.weight"].shape[:2]
    deeper = [any(name.startswith(f"res{stage}.") for name in weights) for stage in ("5", "31")]
    arguments = {"channels": channels, "width": width, "design": (64, 128, 256)[sum(deeper)]}
    training = {"training.sde": "vesde", "training.continuous": False}
    return Architecture(NCSNv2, arguments, training)


def _unet(weights: Weights) -> Architecture:
    """Return the U-Net whose tensors these are, by parsing its sequence of layers.

    Each layer is encoded by a letter: R residual block, A attention, S up- or downsampling,
    P step of a progressive pyramid, N normalization, C convolution. The layers of the downsampling
    path, the middle and the upsampling path are then a string such as
    ``RARA S RARA RAR RRRA S RRRA NC``, which the letters S separate into resolution levels.
    """
    layers = list(_layers(weights))
    fourier = bool(layers) and "W" in layers[0]
    start = 3 if fourier else 2
    biggan = any("Conv_2.weight" in layer for layer in layers)
    body = layers[start:]
    letters = "".join(_letter(layer, biggan) for layer in body)
    parts = letters[1:].split("S")
    lowest = len(parts) // 2
    blocks = (parts[lowest].count("R") - 3) // 2
    if not re.fullmatch(r"C[RASPNC]*NC", letters) or len(parts) % 2 == 0 or blocks < 1:
        raise ValueError(
            "model: expected the layers of a U-Net in 'all_modules', or those of an NCSNv2, got "
            f"{_summary(weights)}; name the architecture with config={{'model.name': …}}"
        )
    levels = _levels(body, letters)
    width, channels = body[0]["weight"][:2]
    arguments: dict[str, Any] = {
        "channels": channels,
        "width": width,
        "multipliers": [max(out // width, 1) for out in levels[: lowest + 1]],
        "blocks": blocks,
        "attention": [i for i, part in enumerate(parts[: lowest + 1]) if re.match("P?RA", part)],
        "biggan": biggan,
        "fourier_scale": 16.0 if fourier else None,
        **_pyramids(body, letters, parts),
    }
    training = {"training.sde": "vesde", "training.continuous": True} if fourier else {}
    return Architecture(NCSNpp if biggan else DDPMUNet, arguments, training)


Layer = dict[str, tuple[int, ...]]
"""Shapes of the tensors of a layer, by their names within the layer."""


def _layers(weights: Weights) -> Iterator[Layer]:
    """Yield the layers of the flat list ``all_modules`` up to the first gap."""
    found: dict[int, Layer] = {}
    for name, tensor in weights.items():
        if match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
    index = 0
    while index in found:
        yield found[index]
        index += 1


def _letter(layer: Layer, biggan: bool) -> str:
    convolution = layer.get("Conv2d_0.weight") or layer.get("Conv_0.weight")
    if "Conv_1.weight" in layer and convolution:
        same_width = convolution[0] == convolution[1]
        return "S" if biggan and same_width and "Conv_2.weight" in layer else "R"
    if "NIN_3.W" in layer:
        return "A"
    if convolution:
        return "P" if biggan else "S"
    return {1: "N", 4: "C"}.get(len(layer.get("weight", ())), "?")


def _levels(body: list[Layer], letters: str) -> list[int]:
    """Return the number of channels of each resolution level, that of its residual blocks."""
    firsts = re.finditer(r"(?:^|S)[^RS]*(R)", letters)
    return [body[first.start(1)]["Conv_0.weight"][0] for first in firsts]


def _pyramids(body: list[Layer], letters: str, parts: list[str]) -> dict[str, Any]:
    """Return the arguments of the progressive pyramids of NCSN++."""
    steps = [layer for layer, letter in zip(body, letters, strict=True) if letter == "P"]
    plain = any(layer.get("Conv_0.weight", (0,))[-1] == 3 for layer in steps)
    found: dict[str, Any] = {"taps": TAPS if steps and not plain else None}
    down = parts[1].startswith("P") if len(parts) > 1 else False
    skip: tuple[int, ...] = steps[0].get("Conv_0.weight", ()) if down else ()
    found["progressive_input"] = "none"
    if down:
        found["progressive_input"] = "input_skip" if skip[-1:] == (1,) else "residual"
    if found["progressive_input"] == "input_skip":
        joined = body[letters.index("P") + 1]["Conv_0.weight"][1]
        found["combine"] = "cat" if joined == 2 * next(iter(skip)) else "sum"
    outputs = [body[out.end() - 1]["weight"][0] for out in re.finditer("NC", letters)]
    if outputs[0] != outputs[-1]:  # the last is the image
        found["progressive"] = "residual"
    else:
        found["progressive"] = "output_skip" if len(outputs) > 1 else "none"
    return found


def _summary(weights: Weights) -> str:
    names = list(weights)
    return f"{len(names)} tensors ({', '.join(names[:3])}, …)"
