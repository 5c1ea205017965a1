"""InstanSeg's U-Net, built from the tensors of a published file with BatchNorm folded in."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

State = dict[str, Tensor]


class UNet(nn.Module):
    """The network for one kind of object: RGB in, five planes out, all of one size."""

    def __init__(self, state: State) -> None:
        super().__init__()
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("encoder."))
        self.downs = nn.ModuleList(_Down(state, f"encoder.{i}", pool=i > 0) for i in range(depth))
        self.ups = nn.ModuleList(_Up(state, f"decoders.0.decoder.{i}") for i in range(depth - 1))
        outputs = [_Convolution(state, f"decoders.0.final_block.{i}") for i in range(3)]
        self.outputs = nn.ModuleList(outputs)
        self.inputs = int(state["encoder.0.conv0.0.weight"].shape[1])
        self.planes = sum(output.out_channels for output in outputs)

    def fuse(self) -> bool:
        """Let the CPU's kernels clip at 0 as they convolve: the same numbers for a fifth less time.
        The operation is torch's own but not public; without it the plain one stays (False)."""
        convolutions = [one for one in self.modules() if isinstance(one, _Convolution)]
        try:
            for one in convolutions:
                one.fused = True
            with torch.inference_mode():
                self(next(self.parameters()).new_zeros(1, self.inputs, 8, 8))
        except (AttributeError, RuntimeError, TypeError):
            for one in convolutions:
                one.fused = False
        return convolutions[0].fused

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch whose sides are multiples of 8."""
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for up, skip in zip(self.ups, skips[-2::-1], strict=True):
            x = up(x, skip)
        return torch.cat([output(x) for output in self.outputs], 1)


class _Convolution(nn.Conv2d):
    """A convolution with the BatchNorm that follows it in the file."""

    fused = False

    def __init__(self, state: State, name: str) -> None:
        weight, bias = state[f"{name}.0.weight"], state[f"{name}.0.bias"]
        outputs, inputs, size, _ = weight.shape
        super().__init__(inputs, outputs, size, padding=size // 2)
        gain = state[f"{name}.1.weight"] / torch.sqrt(state[f"{name}.1.running_var"] + 1e-5)
        shift = state[f"{name}.1.bias"] - state[f"{name}.1.running_mean"] * gain
        self.weight = nn.Parameter(weight * gain.reshape(-1, 1, 1, 1))
        self.bias = nn.Parameter(bias * gain + shift)

    def active(self, x: Tensor) -> Tensor:
        """The convolution, then ReLU."""
        if not self.fused:
            return self(x).relu_()  # type: ignore[no-any-return]
        return torch.ops.mkldnn._convolution_pointwise(  # type: ignore[no-any-return]
            x, self.weight, self.bias, self.padding, [1, 1], [1, 1], 1, "relu", [], ""
        )


class _Down(nn.Module):
    def __init__(self, state: State, name: str, *, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv0 = _Convolution(state, f"{name}.conv0")
        self.conv1 = _Convolution(state, f"{name}.conv1")
        self.conv2 = _Convolution(state, f"{name}.conv2")
        self.conv3 = _Convolution(state, f"{name}.conv3")
        self.conv4 = _Convolution(state, f"{name}.conv4")

    def forward(self, x: Tensor) -> Tensor:
        if self.pool:
            x = functional.max_pool2d(x, 2)
        short = self.conv0.active(x)
        x = self.conv2.active(self.conv1.active(x)).add_(short)
        return self.conv4.active(self.conv3.active(x)).add_(x)


class _Up(nn.Module):
    def __init__(self, state: State, name: str) -> None:
        super().__init__()
        self.conv0 = _Convolution(state, f"{name}.conv0")
        self.conv_skip = _Convolution(state, f"{name}.conv_skip")
        self.conv1 = _Convolution(state, f"{name}.conv1")
        self.conv2 = _Convolution(state, f"{name}.conv2")
        self.conv3 = _Convolution(state, f"{name}.conv3")
        self.conv4 = _Convolution(state, f"{name}.conv4")

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        # a 1×1 convolution gives the same before and after enlarging, at a quarter of the work
        short = _double(self.conv0.active(x))
        x = self.conv1.active(_double(x)).add_(self.conv_skip.active(skip))
        x = self.conv2.active(x).add_(short)
        return self.conv4.active(self.conv3.active(x)).add_(x)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="nearest")
