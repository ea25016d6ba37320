"""Sequential: layers one after another.

A ReLU behind a convolution is no pass of its own: the convolution writes its output rectified, the layer behind masks the
gradient that it gives back, with the same bits. A step of the book's DeepConvNet takes 5 % less time.

Losing: channels last between the layers, which saves the convolutions their transposes. They took 0.88 of the time, but the
step 0.97, for pooling and what is flattened for the affine layer took twice as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Self

import numpy as np

from konv.arrays import check_flag
from konv.layers.activations import ReLU
from konv.layers.affine import Affine
from konv.layers.base import Layer
from konv.layers.causal import CausalConv1d
from konv.layers.convolution import Convolution
from konv.layers.pooling import Pooling


class Sequential(Layer):
    """Layers in a row: each one's output is the next one's input; ``backward`` runs through them in reverse.

    Parameters
    ----------
    *layers : layers, or one iterable of layers
        Anything with ``forward(x)`` and ``backward(dout)``, another Sequential included.

    Raises
    ------
    TypeError
        A layer has no ``forward`` or no ``backward``; or it has parameters (``W`` beside ``dW``) but no ``params()``, so
        that they would never be trained: derive it from :class:`konv.layers.base.Layer`.
    ValueError
        One layer object stands at two places, here or in a nested Sequential. A layer keeps one input, so the second
        place would overwrite what the first needs for its backward. Make two layers with the same parameter arrays.

    Notes
    -----
    Parameters, gradients and buffers are named by place: ``"0.W"``, in a nested Sequential ``"2.0.W"``.
    ``train()`` and ``eval()`` go on to every layer.

    Examples
    --------
    >>> import numpy as np
    >>> from konv.layers.activations import ReLU
    >>> from konv.layers.affine import Affine
    >>> net = Sequential(Affine(np.ones((2, 3)), np.zeros(3)), ReLU(), Affine(np.ones((3, 1)), np.zeros(1)))
    >>> net.forward(np.array([[1.0, 2.0], [-3.0, 1.0]]))
    array([[9.],
           [0.]])
    >>> net.backward(np.ones((2, 1)))
    array([[3., 3.],
           [0., 0.]])
    >>> sorted(net.params())
    ['0.W', '0.b', '2.W', '2.b']
    >>> net
    Sequential(
      0: Affine(W=float64[2, 3], b=float64[3])
      1: ReLU()
      2: Affine(W=float64[3, 1], b=float64[1])
    )
    """

    def __init__(self, *layers: Any) -> None:
        if len(layers) == 1 and isinstance(layers[0], Iterable) and not callable(getattr(layers[0], "forward", None)):
            layers = tuple(layers[0])
        self.layers: tuple[Any, ...] = layers
        for index, layer in enumerate(layers):
            _check_layer(index, layer)
        seen: dict[int, str] = {}
        for name, layer in self._places():
            if id(layer) in seen:
                raise ValueError(
                    f"layers {seen[id(layer)]} and {name} are the same {type(layer).__name__} object, but a layer keeps one "
                    "input for its backward; make two layers with the same parameter arrays"
                )
            seen[id(layer)] = name

    def _places(self) -> Iterator[tuple[str, Any]]:
        """Every layer with the name of its place, those in nested Sequentials included."""
        for index, layer in enumerate(self.layers):
            yield str(index), layer
            if isinstance(layer, Sequential):
                for name, inner in layer._places():
                    yield f"{index}.{name}", inner

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` through all layers, first to last.

        Raises
        ------
        TypeError
            A layer returns several values, as :class:`konv.CausalConv1d` does, or refuses what the one before returned.
        """
        rectified = -3  # the place of the last convolution that did it
        for index, layer in enumerate(self.layers):
            if index == rectified + 1:  # a ReLU: x is its output
                layer._keep(x)
            elif self._rectifies(index):
                rectified = index
                x = layer._forward_rectified(x)
            elif index == rectified + 2 and type(layer) is Pooling:
                x = layer._forward_keeping(x)
            else:
                x = layer.forward(x)
            if isinstance(x, tuple):
                hint = "; without a state, Convolution(W, b, pad='causal') computes the same"
                raise TypeError(
                    f"layer {index}, a {type(layer).__name__}, returned {len(x)} values, and Sequential hands on one array"
                    + hint * isinstance(layer, CausalConv1d)
                )
        return x

    def backward(self, dout: np.ndarray, need_dx: bool = True) -> Any:
        """``dout`` through all layers, last to first; leaves each layer's gradients in it and returns dx.

        With ``need_dx=False``, which is enough to train, it returns None, and a first convolution computes no dx: that is 1 %
        of a step of the book's DeepConvNet.

        Raises
        ------
        TypeError
            ``need_dx`` is neither True nor False, or a layer refuses its ``dout``.
        """
        check_flag("need_dx", need_dx)
        passed = False
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            if passed:  # a ReLU: dout is what its input gets
                layer._passed()
                passed = False
                continue
            if not (index or need_dx) and type(layer) is Convolution and not _replaced(layer, "backward"):
                layer._backward_of_weights(dout)
                return None
            passed = self._masks(index)
            dout = layer._backward_rectified(dout) if passed else layer.backward(dout)
        return dout if need_dx else None

    def _rectifies(self, index: int) -> bool:
        """Whether a convolution rectifies its output for the ReLU behind it, which the layers behind leave as it is."""
        layers = self.layers[index : index + 4]
        kinds = [type(layer) for layer in layers]
        if kinds[:3] == [Convolution, ReLU, Convolution]:
            layers = layers[:3]
        elif kinds[:3] != [Convolution, ReLU, Pooling] or kinds[3:] not in ([Convolution], [Affine]):
            return False
        # What stands in a method's place may write into its input, and all these see what is kept.
        return not any(_replaced(layer, "forward", "backward") for layer in layers)

    def _masks(self, index: int) -> bool:
        """Whether a layer masks the gradient that it gives to the ReLU before it: what this one gave is what it keeps."""
        layer, before = self.layers[index], self.layers[index - 1] if index else None
        if type(before) is not ReLU or before._output is None or type(layer) not in (Convolution, Pooling):
            return False
        if layer.x is not before._output or (type(layer) is Pooling and layer._output is None):
            return False
        return not (_replaced(layer, "backward") or _replaced(before, "backward"))

    def params(self) -> dict[str, np.ndarray]:
        """The trainable arrays of all layers by name: the arrays themselves."""
        return self._collect("params")

    def grads(self) -> dict[str, np.ndarray]:
        """The gradients that the last ``backward`` left, under the names of :meth:`params` (None before it)."""
        return self._collect("grads")

    def buffers(self) -> dict[str, np.ndarray]:
        """The arrays of all layers that are saved but not trained, by name."""
        return self._collect("buffers")

    def _collect(self, kind: str) -> dict[str, np.ndarray]:
        return {
            f"{index}.{name}": array
            for index, layer in enumerate(self.layers)
            if hasattr(layer, kind)
            for name, array in getattr(layer, kind)().items()
        }

    def train(self, mode: bool = True) -> Self:
        """Switch every layer to training (or, with ``mode=False``, to inference) and return the Sequential."""
        super().train(mode)
        for layer in self.layers:
            if hasattr(layer, "train"):
                layer.train(mode)
        return self

    def __repr__(self) -> str:
        """One line for each layer, with its place."""
        lines = (f"{index}: {layer!r}".replace("\n", "\n  ") for index, layer in enumerate(self.layers))
        return "".join(("Sequential(\n", *(f"  {line}\n" for line in lines), ")")) if self.layers else "Sequential()"

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        """The layer at ``index``; for a slice a Sequential of the very layers there."""
        return Sequential(*self.layers[index]) if isinstance(index, slice) else self.layers[index]


def _replaced(layer: Any, *methods: str) -> bool:
    """Whether something stands in the place of one of these methods, in the object or in its class."""
    kind = type(layer)
    return any(method in vars(layer) or getattr(kind, method) is not _OWN[kind, method] for method in methods)


_OWN = {
    (kind, method): getattr(kind, method)
    for kind in (Affine, Convolution, Pooling, ReLU)
    for method in ("forward", "backward")
}


def _check_layer(index: int, layer: Any) -> None:
    kind = type(layer).__name__
    if isinstance(layer, type):
        raise TypeError(f"layer {index} is the class {layer.__name__}; pass an instance, {layer.__name__}(...)")
    for method in ("forward", "backward"):
        if not callable(getattr(layer, method, None)):
            raise TypeError(
                f"layer {index} is a {kind} without {method}(); a layer needs forward(x) and backward(dout)"
            )
    if not callable(getattr(layer, "params", None)):
        lost = [
            name for name, value in vars(layer).items() if isinstance(value, np.ndarray) and hasattr(layer, "d" + name)
        ]
        if lost:
            raise TypeError(
                f"layer {index} is a {kind} with parameters {lost} but without params() and grads(), so they would not be "
                "trained; derive it from konv.layers.base.Layer and set parameter_names"
            )
