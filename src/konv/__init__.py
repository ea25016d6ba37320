"""konv: convolution layers you can read, as fast as the machine allows, for NumPy and PyTorch.

The functions and layers for NumPy arrays are here; ``konv.torch`` holds those for PyTorch and is imported when first used.
"""

from typing import Any

from konv.engine.plan import plan, set_exact
from konv.engine.threads import get_threads, set_threads
from konv.geometry import Geometry, geometry
from konv.gradcheck import gradcheck
from konv.info import info
from konv.layers import (
    SGD,
    Adam,
    Affine,
    AveragePooling,
    BatchNormalization,
    CausalConv1d,
    Convolution,
    ConvolutionTranspose,
    DownConv,
    Dropout,
    Layer,
    Momentum,
    Pooling,
    ReLU,
    Sequential,
    Sigmoid,
    SoftmaxWithLoss,
)
from konv.names import near as _near
from konv.ops import conv, conv_backward, conv_transpose, conv_transpose_backward
from konv.pooling import avg_pool, avg_pool_backward, max_pool, max_pool_backward
from konv.segments import SegmentWarning
from konv.textbook import col2im, im2col
from konv.unfolding import fold, unfold

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adam",
    "Affine",
    "AveragePooling",
    "BatchNormalization",
    "CausalConv1d",
    "Convolution",
    "ConvolutionTranspose",
    "DownConv",
    "Dropout",
    "Geometry",
    "Layer",
    "Momentum",
    "Pooling",
    "ReLU",
    "SegmentWarning",
    "Sequential",
    "Sigmoid",
    "SoftmaxWithLoss",
    "avg_pool",
    "avg_pool_backward",
    "col2im",
    "conv",
    "conv_backward",
    "conv_transpose",
    "conv_transpose_backward",
    "fold",
    "geometry",
    "get_threads",
    "gradcheck",
    "im2col",
    "info",
    "max_pool",
    "max_pool_backward",
    "plan",
    "set_exact",
    "set_threads",
    "unfold",
]


def __getattr__(name: str) -> Any:
    if name == "torch":  # a heavy import, made when it is first used
        import importlib

        return importlib.import_module("konv.torch")
    meant = "" if name.startswith("_") else _meant(name)
    raise AttributeError(f"module 'konv' has no attribute {name!r}{meant}")


def __dir__() -> list[str]:
    return [*__all__, "torch"]


def _meant(name: str) -> str:
    """The public names most like one that is not there, such as PyTorch's for the same thing."""
    torch = name.startswith(("Conv", "conv")) and name.lower().endswith(("1d", "2d", "3d"))
    told = _near(name[:-2] if torch else name, __all__)
    return f"{told}; for PyTorch's tensors konv.torch.{name[:-1]}d" if torch else told
