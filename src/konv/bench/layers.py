"""The table of real layers, by name and group: what ``konv bench`` measures."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from konv.geometry import Geometry, geometry, transposed_geometry

DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Group:
    """Rows with one goal.

    Attributes
    ----------
    name, title : what is typed, what is shown
    forward, backward : how many times faster than PyTorch (N, C, *spatial) konv wants to be; 1 where it only must not lose
    """

    name: str
    title: str
    forward: float
    backward: float


GROUPS = (
    Group("3x3", "3x3, stride 1, 64 channels and more, 14 pixels and more", 1.8, 1.8),
    Group("3x3-7", "3x3, 7 pixels", 1.3, 1.3),
    Group("1x1", "1x1", 1.2, 1.3),
    Group("1x1-strided", "1x1, stride 2", 1.2, 2.2),
    Group("patch", "kernel = stride", 1.1, 3.5),
    Group("stem", "stems, 3 channels", 1.1, 2.3),
    Group("audio", "audio stems, 1 channel", 1.4, 5),
    Group("depthwise", "depthwise 2-D, 3x3", 2.5, 2.5),
    Group("depthwise-7x7", "depthwise 2-D, 7x7", 2.5, 15),
    Group("grouped", "small groups", 2, 3),
    Group("depthwise-1d", "depthwise 1-D", 15, 9),
    Group("general", "3x3 stride 2, dilated, 3-D, 1-D", 1, 1.3),
    Group("book", "the book's layers", 1.2, 1.7),
    Group("transposed", "transposed", 1.3, 1.3),
    Group("float64", "float64", 2.4, 2.4),
    Group("float16", "float16", 60, 40),
    Group("bfloat16", "bfloat16", 4, 3),
    Group("batch1", "batch 1", 1, 1),
)


@dataclass(frozen=True)
class Row:
    """One layer of a network on one input.

    Attributes
    ----------
    name, group : unique name; the group's name
    x, w : shapes (N, C, *spatial) and (F, C // groups, *kernel), or (C, F // groups, *kernel) if ``transposed``
    stride, padding, dilation, groups, transposed, dtype : as for :func:`konv.conv`
    """

    name: str
    group: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    transposed: bool = False
    dtype: str = "float32"

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the operation."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @cached_property
    def geometry(self) -> Geometry:
        """The checked shapes; of a transposed layer, those of the convolution that runs the other way."""
        make = transposed_geometry if self.transposed else geometry
        return make(self.x, self.w, **self.arguments, dtype=self.dtype_of_numpy)

    @property
    def dtype_of_numpy(self) -> Any:
        """The NumPy dtype; bfloat16 is that of ``ml_dtypes``."""
        if self.dtype != "bfloat16":
            return np.dtype(self.dtype)
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)

    @property
    def y(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.geometry.x_shape if self.transposed else self.geometry.output_shape

    @property
    def filters(self) -> int:
        """Channels of the result."""
        return self.y[1]

    def flops(self, direction: str) -> int:
        """Floating point operations: two for each output and weight it meets, twice that for both gradients."""
        return self.geometry.flops * (1 if direction == "forward" else 2)

    def bytes(self, direction: str) -> int:
        """The least that is moved: x, w, y once; backward reads them (dy for y) and writes dx and dw."""
        x, w, y = (math.prod(shape) * self.geometry.itemsize for shape in (self.x, self.w, self.y))
        return x + w + y if direction == "forward" else y + 2 * (x + w)

    def reduction(self, direction: str) -> int:
        """The longest sum: products in an output, or, of a weight's gradient, outputs that met it."""
        g = self.geometry
        taps = math.prod(g.kernel) * (max(g.channels, g.filters) // g.groups)
        return taps if direction == "forward" else max(taps, g.batch * math.prod(g.output))

    def as_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> Row:
        """The row that :meth:`as_dict` described."""
        return cls(**entries | {"x": tuple(entries["x"]), "w": tuple(entries["w"])})


def _square(name: str, group: str, batch: int, channels: int, filters: int, size: int, kernel: int, **more: Any) -> Row:
    """A 2-D layer with a square input and kernel, padded by half the kernel unless told otherwise."""
    more.setdefault("padding", kernel // 2)
    x, w = (batch, channels, size, size), (filters, channels // more.get("groups", 1), kernel, kernel)
    return Row(name, group, x, w, **more)


def _depthwise(name: str, group: str, batch: int, channels: int, size: int, kernel: int, **more: Any) -> Row:
    return _square(name, group, batch, channels, channels, size, kernel, groups=channels, **more)


# The first row of each group is the one that a quick run measures.
ROWS = (
    # He et al. 2016 (ResNet-50); Simonyan & Zisserman 2015 (VGG-16)
    _square("resnet-3x3-64@56", "3x3", 8, 64, 64, 56, 3),
    _square("resnet-3x3-128@28", "3x3", 8, 128, 128, 28, 3),
    _square("resnet-3x3-256@14", "3x3", 8, 256, 256, 14, 3),
    _square("vgg-64@224", "3x3", 2, 64, 64, 224, 3),
    _square("vgg-64-128@112", "3x3", 4, 64, 128, 112, 3),
    _square("vgg-256@56", "3x3", 2, 256, 256, 56, 3),
    _square("vgg-512@28", "3x3", 2, 512, 512, 28, 3),
    _square("resnet-3x3-512@7", "3x3-7", 8, 512, 512, 7, 3),
    _square("resnet-1x1-64-256@56", "1x1", 8, 64, 256, 56, 1),
    _square("resnet-1x1-64@56", "1x1", 8, 64, 64, 56, 1),
    _square("resnet-1x1-256-64@56", "1x1", 8, 256, 64, 56, 1),
    _square("resnet-1x1-512-128@28", "1x1", 8, 512, 128, 28, 1),
    _square("resnet-1x1-1024-256@14", "1x1", 8, 1024, 256, 14, 1),
    _square("resnet-1x1-512-2048@7", "1x1", 8, 512, 2048, 7, 1),
    _square("mobilenet-1x1-24-144@56", "1x1", 8, 24, 144, 56, 1),
    _square("resnet-1x1-256-512@56/2", "1x1-strided", 8, 256, 512, 56, 1, stride=2),
    _square("resnet-1x1-1024-2048@14/2", "1x1-strided", 8, 1024, 2048, 14, 1, stride=2),
    # Dosovitskiy et al. 2021 (ViT-B/16); Liu et al. 2022 (ConvNeXt-T)
    _square("vit-patch16", "patch", 8, 3, 768, 224, 16, stride=16, padding=0),
    _square("convnext-patch4", "patch", 8, 3, 96, 224, 4, stride=4, padding=0),
    _square("convnext-down-96-192@56", "patch", 8, 96, 192, 56, 2, stride=2, padding=0),
    # konv.DownConv(200, 64, 4) and konv.DownConv(16384, 128, 64): its two convolutions
    Row("downconv-200-conv1", "patch", (256, 64, 200), (4, 64, 10), stride=10),
    Row("downconv-200-conv2", "patch", (256, 4, 20), (64, 4, 5), stride=5),
    Row("downconv-16384-conv1", "patch", (8, 128, 16384), (8, 128, 10), stride=10),
    Row("downconv-16384-conv2", "patch", (8, 8, 1638), (128, 8, 26), stride=26, padding=13),
    _square("resnet-stem-7x7/2", "stem", 8, 3, 64, 224, 7, stride=2),
    _square("mobilenet-stem-3x3/2", "stem", 8, 3, 32, 224, 3, stride=2),
    _square("vgg-stem-3x3", "stem", 2, 3, 64, 224, 3),
    # Dai et al. 2017 (M5, raw audio); Ravanelli & Bengio 2018 (SincNet)
    Row("m5-stem-k80/4", "audio", (8, 1, 32000), (128, 1, 80), stride=4, padding=38),
    Row("sincnet-k251", "audio", (16, 1, 3200), (80, 1, 251)),
    # Sandler et al. 2018 (MobileNetV2); ConvNeXt-T; Xie et al. 2017 (ResNeXt-50, 32 groups)
    _depthwise("mobilenet-dw-144@56", "depthwise", 8, 144, 56, 3),
    _depthwise("mobilenet-dw-32@112", "depthwise", 8, 32, 112, 3),
    _depthwise("mobilenet-dw-384@14", "depthwise", 8, 384, 14, 3),
    _depthwise("mobilenet-dw-960@7", "depthwise", 8, 960, 7, 3),
    _depthwise("mobilenet-dw-96@112/2", "depthwise", 8, 96, 112, 3, stride=2),
    _depthwise("mobilenet-dw-192@28/2", "depthwise", 8, 192, 28, 3, stride=2),
    _depthwise("convnext-dw-96@56", "depthwise-7x7", 8, 96, 56, 7),
    _depthwise("convnext-dw-192@28", "depthwise-7x7", 8, 192, 28, 7),
    _depthwise("convnext-dw-384@14", "depthwise-7x7", 8, 384, 14, 7),
    _depthwise("convnext-dw-768@7", "depthwise-7x7", 8, 768, 7, 7),
    _square("resnext-128@56", "grouped", 8, 128, 128, 56, 3, groups=32),
    _square("resnext-256@28", "grouped", 8, 256, 256, 28, 3, groups=32),
    _square("resnext-512@14", "grouped", 8, 512, 512, 14, 3, groups=32),
    _square("resnext-256@56/2", "grouped", 8, 256, 256, 56, 3, groups=32, stride=2),
    # Gulati et al. 2020 (Conformer); Gu & Dao 2023 (Mamba)
    Row("conformer-dw-k31", "depthwise-1d", (8, 256, 1000), (256, 1, 31), padding=15, groups=256),
    Row("mamba-dw-k4", "depthwise-1d", (4, 1536, 1024), (1536, 1, 4), padding=3, groups=1536),
    # Chen et al. 2017 (DeepLabv3); Tran et al. 2018 (R3D); Bai et al. 2018 (TCN); Baevski et al. 2020 (wav2vec 2.0)
    _square("resnet-3x3-128@56/2", "general", 8, 128, 128, 56, 3, stride=2),
    _square("resnet-3x3-256@28/2", "general", 8, 256, 256, 28, 3, stride=2),
    _square("resnet-3x3-512@14/2", "general", 8, 512, 512, 14, 3, stride=2),
    _square("deeplab-512@33-dilated2", "general", 1, 512, 512, 33, 3, dilation=2, padding=2),
    _square("deeplab-2048-256@33-dilated12", "general", 1, 2048, 256, 33, 3, dilation=12, padding=12),
    Row("r3d-64", "general", (1, 64, 8, 56, 56), (64, 64, 3, 3, 3), padding=1),
    Row("tcn-25-k7-dilated8", "general", (32, 25, 784), (25, 25, 7), dilation=8, padding=48),
    Row("tcn-128-k3-dilated8", "general", (16, 128, 1024), (128, 128, 3), dilation=8, padding=16),
    Row("wav2vec-first-k10/5", "general", (4, 1, 16000), (512, 1, 10), stride=5),
    Row("wav2vec-512-k3/2", "general", (1, 512, 3199), (512, 512, 3), stride=2),
    Row("wav2vec-position-k128", "general", (2, 768, 249), (768, 48, 128), padding=64, groups=16),
    # Saitoh 2016, Deep Learning from Scratch: SimpleConvNet, DeepConvNet, batch 100
    _square("book-deep-16@28", "book", 100, 16, 16, 28, 3),
    _square("book-simple-30@28", "book", 100, 1, 30, 28, 5, padding=0),
    _square("book-deep-1-16@28", "book", 100, 1, 16, 28, 3),
    _square("book-deep-16-32@14", "book", 100, 16, 32, 14, 3),
    _square("book-deep-32@14", "book", 100, 32, 32, 14, 3, padding=2),
    _square("book-deep-32-64@8", "book", 100, 32, 64, 8, 3),
    _square("book-deep-64@8", "book", 100, 64, 64, 8, 3),
    # Radford et al. 2016 (DCGAN); Ronneberger et al. 2015 (U-Net); Kong et al. 2020 (HiFi-GAN)
    Row("dcgan-512-256@8", "transposed", (16, 512, 8, 8), (512, 256, 4, 4), stride=2, padding=1, transposed=True),
    Row("dcgan-128-64@32", "transposed", (8, 128, 32, 32), (128, 64, 4, 4), stride=2, padding=1, transposed=True),
    Row("unet-128-64@64", "transposed", (4, 128, 64, 64), (128, 64, 2, 2), stride=2, transposed=True),
    Row("hifigan-512-256-k16/8", "transposed", (16, 512, 32), (512, 256, 16), stride=8, padding=4, transposed=True),
    *(
        row
        for dtype in ("float64", "float16", "bfloat16")
        for row in (
            _square(f"resnet-3x3-64@56-{dtype}", dtype, 8, 64, 64, 56, 3, dtype=dtype),
            _square(f"resnet-1x1-256-64@56-{dtype}", dtype, 8, 256, 64, 56, 1, dtype=dtype),
            _depthwise(f"mobilenet-dw-144@56-{dtype}", dtype, 8, 144, 56, 3, dtype=dtype),
        )
    ),
    _square("resnet-3x3-256@14-batch1", "batch1", 1, 256, 256, 14, 3),
    _square("resnet-3x3-64@56-batch1", "batch1", 1, 64, 64, 56, 3),
    _square("resnet-1x1-512-2048@7-batch1", "batch1", 1, 512, 2048, 7, 1),
    _depthwise("mobilenet-dw-144@56-batch1", "batch1", 1, 144, 56, 3),
    _square("tiny-8@8", "batch1", 1, 8, 8, 8, 3),
)


def group_of(name: str) -> Group:
    """The group called ``name``."""
    return next(group for group in GROUPS if group.name == name)


def select(names: Sequence[str] = (), quick: bool = False) -> list[Row]:
    """The rows called ``names``: rows, groups, or patterns of row names such as ``resnet-*``; all of them without names.

    Parameters
    ----------
    names : names of rows and groups, and patterns
    quick : only the first row of each group, where names are not given

    Raises
    ------
    ValueError
        A name fits no row and no group; the message has the near ones, or all groups.

    Examples
    --------
    >>> [row.name for row in select(["1x1-strided", "tiny-*"])]
    ['resnet-1x1-256-512@56/2', 'resnet-1x1-1024-2048@14/2', 'tiny-8@8']
    """
    if not names:
        firsts = {next(row for row in ROWS if row.group == group.name) for group in GROUPS}
        return [row for row in ROWS if not quick or row in firsts]
    chosen: set[Row] = set()
    for name in names:
        fitting = {row for row in ROWS if row.group == name or fnmatch.fnmatchcase(row.name, name.lower())}
        if not fitting:
            known = [*(group.name for group in GROUPS), *(row.name for row in ROWS)]
            near = difflib.get_close_matches(name, known, cutoff=0.6)  # 0.4 found tiny-8@8 near "nothing"
            groups = f"the groups are {', '.join(group.name for group in GROUPS)}; konv bench --list shows the rows"
            raise ValueError(
                f"{name!r} is no row and no group of the table; " + (f"near: {', '.join(near)}" if near else groups)
            )
        chosen |= fitting
    return [row for row in ROWS if row in chosen]
