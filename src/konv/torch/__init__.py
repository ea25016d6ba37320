"""The PyTorch face of konv: functions and modules that take and return tensors. ``import konv`` does not load it."""

try:
    import torch as _torch  # noqa: F401  (the installed package: imports are absolute)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('konv.torch needs PyTorch, which is not installed: pip install "konv[torch]"') from error

from konv.torch.downconv import DownConv
from konv.torch.functional import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = [
    "DownConv",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
]
