"""InstanSeg's networks, built from the tensors of a published file with BatchNorm folded in."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from jobs.imaging.tiling import ALIGN, Rect

State = dict[str, Tensor]

BLOCK_REACH = 4
"""Pixels, of its own level, that a block's four 3×3 convolutions see to every side."""


class UNet(nn.Module):
    """An encoder and one decoder for each kind of object: RGB in, all planes out, all of one size.

    With an `adaptor` it takes any number of channels.
    halo   pixels beyond which an output pixel does not see the input
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        own = {name.removeprefix("model."): value for name, value in state.items()}
        depth = _count(own, "encoder.")
        self.adaptor = _Adaptor(own) if any(_of_adaptor(name) for name in own) else None
        self.downs = nn.ModuleList(_Block(own, f"encoder.{i}", pool=i > 0) for i in range(depth))
        names = [f"decoders.{i}" for i in range(_count(own, "decoders."))]
        decoders = [_Decoder(own, name, depth) for name in names]
        self.decoders = nn.ModuleList(decoders)
        first = own["encoder.0.conv0.0.weight"]
        self.channels = None if self.adaptor is not None else int(first.shape[1])
        self.planes = sum(decoder.planes for decoder in decoders)
        # blocks of every level on the way down and up; pooling may look to its grid's edge
        coarsest = 2 ** (depth - 1)
        seen = BLOCK_REACH * (2 * coarsest - 1 + coarsest - 1) + coarsest - 1
        self.halo = seen + (0 if self.adaptor is None else _Adaptor.HALO)

    def fuse(self) -> bool:
        """Let the CPU's kernels clip at 0 as they convolve: the same numbers for a fifth less time.
        The operation is torch's own but not public; without it the plain one stays (False)."""
        convolutions = [one for one in self.modules() if isinstance(one, _Convolution)]
        try:
            for one in convolutions:
                one.fused = True
            with torch.inference_mode():
                self(next(self.parameters()).new_zeros(1, self.channels or 2, 16, 16))
        except (AttributeError, RuntimeError, TypeError):
            for one in convolutions:
                one.fused = False
        return convolutions[0].fused

    def forward(self, x: Tensor, keep: Rect | None = None) -> Tensor:
        """Logits of a batch whose sides are multiples of 8, or of its part `keep` alone. Of every
        level only the part is computed that `keep` depends on: the same numbers for less work."""
        if self.adaptor is not None:
            x = self.adaptor(x)
        whole = Rect(0, 0, x.shape[3], x.shape[2])
        needed = _needed(keep or whole, whole, len(self.downs))
        skips = [(x, whole)]
        for level, down in enumerate(self.downs):
            skips.append((down(*skips[-1], needed.down[level], level), needed.down[level]))
        planes = [one for decoder in self.decoders for one in decoder(skips[1:], needed.up)]
        area = needed.up[0]
        out = torch.cat(planes, 1)
        return out if keep is None else _part(out, area, keep, 0)


class _Needed(NamedTuple):
    """What each level's block must be given, finest first, in pixels of the finest."""

    down: list[Rect]
    up: list[Rect]


def _needed(keep: Rect, whole: Rect, depth: int) -> _Needed:
    margin, up, down = 0, [], []
    levels = range(depth)
    for level in levels[:-1]:
        margin += _grid(BLOCK_REACH << level)
        up.append(_aligned(keep.grown(margin)).clipped(whole))
    for level in levels[::-1]:
        margin += _grid(BLOCK_REACH << level)
        down.append(_aligned(keep.grown(margin)).clipped(whole))
    return _Needed(down[::-1], up)


def _aligned(area: Rect) -> Rect:
    """The smallest area on the grid of the network's pooling that holds `area`."""
    x, y = area.x // ALIGN * ALIGN, area.y // ALIGN * ALIGN
    return Rect(x, y, _grid(area.right - x), _grid(area.bottom - y))


def _grid(length: int) -> int:
    return -(-length // ALIGN) * ALIGN


def _part(x: Tensor, area: Rect, part: Rect, level: int) -> Tensor:
    """The part of `x`, which covers `area`, both in pixels of the finest level."""
    if area == part:
        return x
    rows, cols = part.slices(area)
    scaled = [slice(one.start >> level, one.stop >> level) for one in (rows, cols)]
    return x[:, :, scaled[0], scaled[1]].contiguous(memory_format=torch.channels_last)


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


class _Block(nn.Module):
    """Five convolutions on the way down; `pool` halves the sides before."""

    def __init__(self, state: State, name: str, *, pool: bool) -> None:
        super().__init__()
        self.pool = pool
        self.conv0 = _Convolution(state, f"{name}.conv0")
        self.conv1 = _Convolution(state, f"{name}.conv1")
        self.conv2 = _Convolution(state, f"{name}.conv2")
        self.conv3 = _Convolution(state, f"{name}.conv3")
        self.conv4 = _Convolution(state, f"{name}.conv4")

    def forward(self, x: Tensor, area: Rect, part: Rect, level: int) -> Tensor:
        """The block's planes of `part`, from `x`, which covers `area`."""
        if self.pool:
            x = functional.max_pool2d(x, 2)
        x = _part(x, area, part, level)
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


class _Decoder(nn.Module):
    """The way up for one kind of object."""

    def __init__(self, state: State, name: str, depth: int) -> None:
        super().__init__()
        self.ups = nn.ModuleList(_Up(state, f"{name}.decoder.{i}") for i in range(depth - 1))
        finals = [f"{name}.final_block.{i}" for i in range(_count(state, f"{name}.final_block."))]
        outputs = [_Convolution(state, final) for final in finals]
        self.outputs = nn.ModuleList(outputs)
        self.planes = sum(output.out_channels for output in outputs)

    def forward(self, skips: list[tuple[Tensor, Rect]], parts: list[Rect]) -> list[Tensor]:
        x, area = skips[-1]
        for index, up in enumerate(self.ups):
            level = len(self.ups) - 1 - index
            part = parts[level]
            x = up(_part(x, area, part, level + 1), _part(*skips[level], part, level))
            area = part
        return [output(x) for output in self.outputs]


class _Adaptor(nn.Module):
    """InstanSeg's ChannelInvariantNet: any number of channels in, in any order, three planes out.

    Every channel goes through the same small U-Net, which after each block sees the greatest
    response of all channels.
    """

    HALO = 5 * (1 + 2 + 4) + 5 * 2 + 4 + 3

    def __init__(self, state: State) -> None:
        super().__init__()
        own = {
            name.removeprefix("AdaptorNet."): value
            for name, value in state.items()
            if _of_adaptor(name)
        }
        names = ("conv_0", "down_1", "down_2")
        self.downs = nn.ModuleList(_Block(own, name, pool=name != "conv_0") for name in names)
        self.ups = nn.ModuleList(_Up(own, name) for name in ("upcat_2", "upcat_1"))
        shared = (*names, "upcat_2")
        self.shares = nn.ModuleList(_Convolution(own, f"{name}.reduce_block") for name in shared)
        self.final = _Convolution(own, "final_conv")

    def forward(self, x: Tensor) -> Tensor:
        images, channels, rows, cols = x.shape
        x = x.reshape(images * channels, 1, rows, cols)
        whole = Rect(0, 0, cols, rows)
        skips = []
        for level, down in enumerate(self.downs):
            x = _shared(down(x, whole, whole, level), self.shares[level], channels)
            skips.append(x)
        x = _shared(self.ups[0](x, skips[1]), self.shares[3], channels)
        x = self.ups[1](x, skips[0])
        return self.final(_greatest(x, channels))  # type: ignore[no-any-return]


def _shared(x: Tensor, share: nn.Module, channels: int) -> Tensor:
    """`share` of every channel beside what is greatest in all of them."""
    most = _greatest(x, channels).repeat_interleave(channels, 0)
    both = torch.cat([most, x], 1).contiguous(memory_format=torch.channels_last)
    return share.active(both)  # type: ignore[operator, no-any-return]


def _greatest(x: Tensor, channels: int) -> Tensor:
    """The greatest of each image's channels, which follow each other in the batch."""
    return torch.stack([x[channel::channels] for channel in range(channels)]).amax(0)


def _double(x: Tensor) -> Tensor:
    return functional.interpolate(x, scale_factor=2, mode="nearest")


def _count(state: State, prefix: str) -> int:
    """How many numbered parts follow `prefix`."""
    found = {name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)}
    return 1 + max(map(int, found), default=-1)


def _of_adaptor(name: str) -> bool:
    return name.startswith("AdaptorNet.")
