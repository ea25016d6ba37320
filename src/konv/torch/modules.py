"""PyTorch's convolution layers, computed by konv: subclasses that differ in the function they call and in nothing else.

Constructors, ``state_dict``, initial weights after the same ``torch.manual_seed``, ``repr`` and errors are PyTorch's, so weights
go from one to the other in both directions. What does not work: ``torch.jit.script`` (``torch.jit.trace``,
``torch.compile`` and ``torch.export`` do).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from konv.names import names_told
from konv.torch import functional
from konv.torch.functional import check_tensor

__all__ = [
    "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "LazyConv1d", "LazyConv2d",
    "LazyConv3d", "LazyConvTranspose1d", "LazyConvTranspose2d", "LazyConvTranspose3d",
]  # fmt: skip


# An attribute of layers that :func:`konv.torch.convert` made: a :class:`konv.torch.functional.Met`.
ONLY_WHERE_FASTER = "_konv_only_where_faster"


class _Convolution:
    """Put in front of a convolution of PyTorch, which calls ``_conv_forward``."""

    _function: ClassVar[Callable[..., Tensor]]

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        check_tensor("input", input)
        met, asked = vars(self).get(ONLY_WHERE_FASTER), input
        kind = None if met is None else functional.kind_of_call(input, weight, bias)
        if kind is not None and kind in met.kinds:
            known = met.kinds[kind]
            if known is None:
                return super()._conv_forward(input, weight, bias)  # type: ignore[misc]
            options = self.stride, self.padding, self.dilation, self.groups
            if (
                self.padding_mode == "zeros"
                and (y := functional.again(known, options, input, weight, bias)) is not None
            ):
                return y
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        if met is not None:
            more = self.stride, padding, self.dilation, self.groups, 0
            return functional.where_faster(met, asked, len(self.kernel_size), False, input, weight, bias, *more)
        return self._function(input, weight, bias, self.stride, padding, self.dilation, self.groups)


class _Transposed:
    """Put in front of a transposed convolution of PyTorch."""

    _function: ClassVar[Callable[..., Tensor]]

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """(N, C, *spatial) or (C, *spatial) -> the result, of ``output_size`` where that is one of the sizes possible."""
        check_tensor("input", input)
        stride, padding, kernel, dilation = (
            list(option) for option in (self.stride, self.padding, self.kernel_size, self.dilation)
        )
        extra = self._output_padding(input, output_size, stride, padding, kernel, len(kernel), dilation)
        if ONLY_WHERE_FASTER in vars(self):
            more = self.stride, self.padding, self.dilation, self.groups, extra
            return functional.where_faster(None, input, len(kernel), True, input, self.weight, self.bias, *more)
        return self._function(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )


class Conv1d(_Convolution, nn.Conv1d):
    """:class:`torch.nn.Conv1d`, computed by konv; see :mod:`konv.torch.modules`.

    Parameters, attributes, shapes and what is raised are those of PyTorch's class.

    Examples
    --------
    >>> import torch
    >>> layer = Conv1d(4, 8, 3, padding="same")
    >>> layer(torch.zeros(2, 4, 100)).shape
    torch.Size([2, 8, 100])
    >>> layer.load_state_dict(torch.nn.Conv1d(4, 8, 3, padding="same").state_dict())
    <All keys matched successfully>
    """

    _function = staticmethod(functional.conv1d)


class Conv2d(_Convolution, nn.Conv2d):
    """:class:`torch.nn.Conv2d`, computed by konv; see :class:`Conv1d`.

    Examples
    --------
    >>> import torch
    >>> Conv2d(3, 16, 3, stride=2, padding=1, padding_mode="reflect")(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 16, 16, 16])
    """

    _function = staticmethod(functional.conv2d)


class Conv3d(_Convolution, nn.Conv3d):
    """:class:`torch.nn.Conv3d`, computed by konv; see :class:`Conv1d`.

    Examples
    --------
    >>> import torch
    >>> Conv3d(2, 4, 3, groups=2)(torch.zeros(1, 2, 5, 6, 7)).shape
    torch.Size([1, 4, 3, 4, 5])
    """

    _function = staticmethod(functional.conv3d)


class ConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """:class:`torch.nn.ConvTranspose1d`, computed by konv; see :class:`Conv1d`.

    Examples
    --------
    >>> import torch
    >>> ConvTranspose1d(4, 2, 3, stride=2)(torch.zeros(1, 4, 10), output_size=[22]).shape
    torch.Size([1, 2, 22])
    """

    _function = staticmethod(functional.conv_transpose1d)


class ConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """:class:`torch.nn.ConvTranspose2d`, computed by konv; see :class:`Conv1d`.

    Examples
    --------
    >>> import torch
    >>> ConvTranspose2d(16, 3, 2, stride=2)(torch.zeros(8, 16, 16, 16)).shape
    torch.Size([8, 3, 32, 32])
    """

    _function = staticmethod(functional.conv_transpose2d)


class ConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """:class:`torch.nn.ConvTranspose3d`, computed by konv; see :class:`Conv1d`.

    Examples
    --------
    >>> import torch
    >>> ConvTranspose3d(4, 2, 2, stride=2)(torch.zeros(1, 4, 2, 4, 4)).shape
    torch.Size([1, 2, 4, 8, 8])
    """

    _function = staticmethod(functional.conv_transpose3d)


class LazyConv1d(_Convolution, nn.LazyConv1d):  # type: ignore[misc]
    """A :class:`Conv1d` that learns ``in_channels`` from its first input, as :class:`torch.nn.LazyConv1d`.

    Examples
    --------
    >>> import torch
    >>> layer = LazyConv1d(8, 3)
    >>> layer(torch.zeros(2, 4, 10)).shape, layer
    (torch.Size([2, 8, 8]), Conv1d(4, 8, kernel_size=(3,), stride=(1,)))
    """

    _function, cls_to_become = staticmethod(functional.conv1d), Conv1d  # type: ignore[assignment]


class LazyConv2d(_Convolution, nn.LazyConv2d):  # type: ignore[misc]
    """A :class:`Conv2d` that learns ``in_channels`` from its first input, as :class:`torch.nn.LazyConv2d`."""

    _function, cls_to_become = staticmethod(functional.conv2d), Conv2d  # type: ignore[assignment]


class LazyConv3d(_Convolution, nn.LazyConv3d):  # type: ignore[misc]
    """A :class:`Conv3d` that learns ``in_channels`` from its first input, as :class:`torch.nn.LazyConv3d`."""

    _function, cls_to_become = staticmethod(functional.conv3d), Conv3d  # type: ignore[assignment]


class LazyConvTranspose1d(_Transposed, nn.LazyConvTranspose1d):  # type: ignore[misc]
    """A :class:`ConvTranspose1d` that learns ``in_channels`` from its first input."""

    _function, cls_to_become = staticmethod(functional.conv_transpose1d), ConvTranspose1d  # type: ignore[assignment]


class LazyConvTranspose2d(_Transposed, nn.LazyConvTranspose2d):  # type: ignore[misc]
    """A :class:`ConvTranspose2d` that learns ``in_channels`` from its first input."""

    _function, cls_to_become = staticmethod(functional.conv_transpose2d), ConvTranspose2d  # type: ignore[assignment]


class LazyConvTranspose3d(_Transposed, nn.LazyConvTranspose3d):  # type: ignore[misc]
    """A :class:`ConvTranspose3d` that learns ``in_channels`` from its first input."""

    _function, cls_to_become = staticmethod(functional.conv_transpose3d), ConvTranspose3d  # type: ignore[assignment]


for _module in (
    *(Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d),
    *(LazyConv1d, LazyConv2d, LazyConv3d, LazyConvTranspose1d, LazyConvTranspose2d, LazyConvTranspose3d),
):
    _module.__init__ = names_told(_module.__init__)  # type: ignore[method-assign]
