"""The PyTorch face of konv: functions and modules that take and return tensors. ``import konv`` does not load it."""

try:
    import torch as _torch  # noqa: F401  (the installed package: imports are absolute)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError("konv.torch needs PyTorch, which is not installed: pip install torch ml-dtypes") from error

from typing import Any as _Any

from konv.names import near as _near
from konv.torch.causal import CausalConv1d
from konv.torch.conversion import Conversion, convert
from konv.torch.downconv import DownConv
from konv.torch.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d
from konv.torch.modules import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
)

__all__ = [
    "CausalConv1d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Conversion",
    "DownConv",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convert",
]


def __getattr__(name: str) -> _Any:
    meant = "" if name.startswith("_") else _near(name, __all__)
    raise AttributeError(f"module 'konv.torch' has no attribute {name!r}{meant}")
