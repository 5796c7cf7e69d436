"""Residual blocks, and networks of three stages of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from varshift.functional import KalmanState

from ._chain import Signal, Step, added, joined, lay, rectified, run
from ._parts import HalfSize, PadChannels, Parts, check_counts, conv1x1, conv3x3, initialise

Fork = Literal["input", "activation"]


class Block(nn.Module):
    """A branch of layers, and a shortcut around it.

    Args:
        channels: Channels of the input.
        steps: The branch, see `Chain`.
        parts: Noise and norm.
        shortcut: What stands on the shortcut, see `Chain`; nothing for the identity.
        fork: What a shortcut that is not the identity reads: the input, or the branch's signal behind its
            first activation.
        join: ``"add"``, or ``"concat"`` to put the branch's channels behind the input's.
        after: What stands behind the join: ``"act"``, a module or nothing.
    """

    def __init__(
        self,
        channels: int,
        steps: Sequence[Step],
        parts: Parts,
        *,
        shortcut: Sequence[Step] = (),
        fork: Fork = "input",
        join: Literal["add", "concat"] = "add",
        after: Step | None = None,
    ) -> None:
        super().__init__()
        plan = lay(self, channels, steps, parts)
        self.join = joined if join == "concat" else added
        gate = parts.noise_at("P")
        if gate is not None:
            self.drop_path = gate
            plan = (*plan, ("other", "drop_path", len(steps)))
        # The part of the branch that the shortcut waits for: up to the first activation where it reads that,
        # else a first norm, which knows the moments of the input.
        self.fork = fork if shortcut else "input"
        first = 0
        if self.fork == "activation":
            first = sum(step <= list(steps).index("act") for _, _, step in plan)
        elif plan and plan[0][0] == "norm":
            first = 1
        self.entry, self.branch = plan[:first], plan[first:]
        names = {"conv": "shortcut", "norm": "shortcut_norm"}
        self.detour = lay(self, channels, shortcut, parts, names=names, noisy=False)
        self.after = after == "act"
        self.activation = after if isinstance(after, nn.Module) else None
        self.behind_sum = parts.noise_at("T")

    def forward(self, x: Tensor, state: KalmanState | None = None) -> Signal:
        """The signal behind the block."""
        entered = run(self, self.entry, (x, state))
        trunk = entered if self.fork == "activation" else (x, entered[1])
        joint = self.join(run(self, self.detour, trunk), run(self, self.branch, entered))
        if self.after:
            joint = rectified(joint)
        if self.activation is not None:
            joint = (self.activation(joint[0]), None)
        return joint if self.behind_sum is None else (self.behind_sum(joint[0]), joint[1])


class Network(nn.Module):
    """Base of the image networks: body, last norm, average pooling, linear layer.

    A subclass makes ``stem`` and the blocks first, and calls `finish` last, so that norms are registered in
    the order in which they run.
    """

    stages: nn.Sequential

    def begin(self, in_channels: int, steps: Sequence[Step], parts: Parts, placed: bool = False) -> None:
        """Makes the stem; `placed` lets the noise of networks of independent components stand in it."""
        names = {"conv": "stem", "norm": "stem_norm"}
        self.entry = lay(self, in_channels, steps, parts, names=names, noisy=placed)

    def finish(self, channels: int, num_classes: int, steps: Sequence[Step], parts: Parts) -> None:
        """Makes the head and draws the weights."""
        self.exit = lay(self, channels, steps, parts, names={"norm": "norm"}, noisy=False)
        self.before_pooling = parts.noise_at("before_pooling")
        self.before_linear = parts.noise_at("last", 0)
        self.linear = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the class scores of a batch of images."""
        signal: Signal = run(self, self.entry, (x, None))
        for stage in self.stages:
            for block in stage:  # pyright: ignore[reportGeneralTypeIssues]
                signal = block(*signal)
        x = run(self, self.exit, signal)[0]
        if self.before_pooling is not None:
            x = self.before_pooling(x)
        x = x.mean((2, 3))
        return self.linear(x if self.before_linear is None else self.before_linear(x))


class ResidualNetwork(Network):
    """Three stages of residual blocks, the second and third at half the resolution of the one before.

    Args:
        blocks: Blocks per stage.
        num_classes: Number of classes.
        parts: Noise and norm.
        make_block: Makes a block from its input channels, planes, stride and the parts.
        expansion: Output channels of a block per plane.
        in_channels: Channels of the input.
        stem: Channels of the stem.
        width: Planes of the first stage.
        stem_steps: What follows the stem's convolution.
        head_steps: What precedes the pooling.
        stem_noise: Whether the stem has the noise of a chain.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int,
        parts: Parts,
        make_block: Callable[[int, int, int, Parts], Block],
        *,
        expansion: int,
        in_channels: int,
        stem: int,
        width: int,
        stem_steps: Sequence[Step] = (),
        head_steps: Sequence[Step] = (),
        stem_noise: bool = False,
    ) -> None:
        super().__init__()
        check_counts(blocks=blocks, num_classes=num_classes, in_channels=in_channels, width=width, stem=stem)
        self.begin(in_channels, [conv3x3(in_channels, stem), *stem_steps], parts, stem_noise)
        channels, stages = stem, []
        for stage in range(3):
            layers = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(make_block(channels, width * 2**stage, stride, parts))
                channels = width * 2**stage * expansion
            stages.append(nn.Sequential(*layers))
        self.stages = nn.Sequential(*stages)
        self.finish(channels, num_classes, head_steps, parts)


def projection(in_channels: int, out_channels: int, stride: int, *norm: Step) -> list[Step]:
    """A 1x1 convolution, and what is to follow it, where a block changes the shape; else nothing."""
    if in_channels == out_channels and stride == 1:
        return []
    return [conv1x1(in_channels, out_channels, stride=stride), *norm]


def padding(in_channels: int, out_channels: int, stride: int) -> list[Step]:
    """A shortcut without weights: means over 2x2 windows, and half of the new channels on either side."""
    new = out_channels - in_channels
    steps: list[Step] = [HalfSize()] if stride > 1 else []
    return [*steps, PadChannels(new // 2, new - new // 2)] if new else steps
