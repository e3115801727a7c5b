"""Networks with a bug."""

import torch
from torch import nn

from gallery.bug import breaks
from scoresde.networks import MLP


class _Small(nn.Module):
    """Two layers and the label."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 2)

    def hidden(self, x, label):
        return torch.tanh(self.first(torch.cat([x, label[:, None]], 1)))

    def forward(self, x, label):
        return self.last(self.hidden(x, label))


def right():
    return MLP((2,), width=8, depth=1)


@breaks("shapes", "a label of shape", right)
class Squeezed(_Small):
    def forward(self, x, label):
        return super().forward(x, label).squeeze()


@breaks("shapes", "a table or constant in float32", right)
class Float32Table(_Small):
    """A frequency that is neither a buffer nor cast."""

    def forward(self, x, label):
        frequency = torch.tensor([1.0, 2.0])
        return super().forward(x, label).float() * torch.cos(frequency)


@breaks("batch independence", "the statistics of the batch", right)
class BatchNorm(_Small):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def forward(self, x, label):
        return self.last(self.norm(self.hidden(x, label)))


@breaks("batch independence", "one label for all samples", right)
class FirstLabel(_Small):
    def forward(self, x, label):
        return super().forward(x, label[:1].expand(len(x)))


@breaks("purity", "dropout that ignores eval()", right)
class Dropping(_Small):
    def forward(self, x, label):
        return self.last(nn.functional.dropout(self.hidden(x, label), 0.5))


@breaks("purity", "an in-place operation on x or label", right)
class InPlace(_Small):
    def forward(self, x, label):
        return super().forward(x.mul_(2.0), label)


@breaks("labels", "log 0 or 1/label", right)
class LogLabel(_Small):
    def forward(self, x, label):
        return super().forward(x, torch.sin(label.log()))


@breaks("labels", "a label that is not used", right)
class NoLabel(_Small):
    def forward(self, x, label):
        return super().forward(x, 0 * label)


@breaks("single precision", "half precision", right)
class HalfPrecisionLabel(_Small):
    def forward(self, x, label):
        rounded = label if label.dtype == torch.float64 else label.half().to(label.dtype)
        return super().forward(x, torch.sin(2000 * rounded))


@breaks("gradient", ".detach(), no_grad or numpy", right)
class Detached(_Small):
    def forward(self, x, label):
        return super().forward(x.detach(), label)


@breaks("training", ".detach() or no_grad around a block", right)
class FrozenByMistake(_Small):
    def hidden(self, x, label):
        with torch.no_grad():
            return super().hidden(x, label)


class _Cube(torch.autograd.Function):
    """x³ with a derivative that has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@breaks("second derivatives", "a kernel without second derivative", right)
class OnceDifferentiable(_Small):
    def forward(self, x, label):
        return super().forward(_Cube.apply(x), label)


@breaks("forward mode", "an operation without forward derivative", right)
class WithoutForwardMode(_Small):
    def forward(self, x, label):
        return super().forward(_Cube.apply(x), label)


@breaks("serialization", "self._width for an argument width", right)
class PrivateArgument(_Small):
    def __init__(self, width=8):
        super().__init__()
        self._width = width


@breaks("serialization", "depends on random numbers", right)
class RandomTable(_Small):
    """Random frequencies that are not stored."""

    def __init__(self):
        super().__init__()
        self.frequency = torch.randn(2).tolist()

    def forward(self, x, label):
        return super().forward(x, label) * x.new_tensor(self.frequency)
