"""The PyTorch face of konv: modules that take and return tensors. ``import konv`` does not load it; import it by name."""

try:
    import torch as _torch  # noqa: F401  (the installed package: imports are absolute)
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ImportError('konv.torch needs PyTorch, which is not installed: pip install "konv[torch]"') from error

from konv.torch.downconv import DownConv

__all__ = ["DownConv"]
