"""The peers: each builds a row in its own way and gives back a function to time.

All draw the same inputs from the row's name. What a peer cannot compute, it declines, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from konv.bench.exact import Arrays, Inputs
from konv.bench.layers import Row
from konv.engine.memory import aligned

MOST_COLUMNS = 256 << 20  # bytes of the textbook's im2col matrix; larger rows are left out
MOST_HALF_WORK = 100_000_000  # NumPy multiplies half types without a BLAS, a thousand times slower


class Declined(Exception):
    """A peer does not compute a row; the message says why."""


@dataclass(frozen=True)
class Built:
    """A row, ready to be timed.

    Attributes
    ----------
    call : what is timed; returns the peer's own arrays
    arrays : takes what ``call`` returned to NumPy arrays in (N, C, *spatial): [y], or [dx, dw, db]
    reused : bytes of the outputs that ``call`` writes into again and again, and does not allocate
    check : where results are not compared with those of another process: what is said of them
    """

    call: Callable[[], Any]
    arrays: Callable[[Any], Arrays]
    reused: int = 0
    check: Callable[[], dict[str, float]] | None = None


def channels_last(array: np.ndarray) -> np.ndarray:
    """The same array with its channels neighbours in memory."""
    last = np.moveaxis(array, 1, -1)
    found = aligned(last.shape, array.dtype)
    found[...] = last
    return np.moveaxis(found, -1, 1)


class Konv:
    """konv on NumPy arrays, channels first or last in memory."""

    def __init__(self, threads: int, last: bool = False):
        import konv

        konv.set_threads(threads)
        self.last, self.versions = last, {"konv": konv.__version__}

    def build(self, row: Row, direction: str) -> Built:
        """See :class:`Built`."""
        import konv

        inputs = Inputs.of(row, direction)
        x, w, b, dy = inputs.x, inputs.w, inputs.b, inputs.dy
        lay = channels_last if self.last else np.ascontiguousarray
        x = lay(x)
        if direction == "backward":
            upstream = lay(dy)
            if row.transposed:
                return Built(lambda: konv.conv_transpose_backward(upstream, x, w, **row.arguments), list)
            return Built(lambda: konv.conv_backward(upstream, x, w, **row.arguments), list)
        if row.transposed:
            return Built(lambda: [konv.conv_transpose(x, w, b, **row.arguments)], list)
        shape = (row.y[0], *row.y[2:], row.y[1]) if self.last else row.y
        out = aligned(shape, x.dtype)  # as PyTorch's results are, and konv's own
        out[...] = 0
        out = np.moveaxis(out, -1, 1) if self.last else out
        return Built(lambda: [konv.conv(x, w, b, **row.arguments, out=out)], list, out.nbytes)

    def release(self) -> None:
        """Give kept workspaces back to the system."""
        from konv.engine import memory

        memory.release()


class Textbook:
    """The plain NumPy text."""

    def __init__(self, threads: int):
        self.versions = {"numpy": np.__version__}

    def build(self, row: Row, direction: str) -> Built:
        """See :class:`Built`."""
        from konv import textbook

        g = row.geometry
        columns = g.batch * math.prod(g.output) * g.channels * math.prod(g.kernel) * g.itemsize
        if columns > MOST_COLUMNS:
            raise Declined(f"im2col matrix of {columns >> 20} MiB")
        if row.dtype in ("float16", "bfloat16") and row.flops(direction) > MOST_HALF_WORK:
            raise Declined(f"no BLAS for {row.dtype}")
        inputs = Inputs.of(row, direction)
        return textbook_call(textbook, row, direction, inputs)


def textbook_call(textbook: Any, row: Row, direction: str, inputs: Inputs) -> Built:
    """The call of the textbook's function for a row."""
    x, w, b, dy = inputs.x, inputs.w, inputs.b, inputs.dy
    if direction == "backward":
        gradients = textbook.conv_transpose_backward if row.transposed else textbook.conv_backward
        return Built(lambda: gradients(dy, x, w, **row.arguments), list)
    forward = textbook.conv_transpose if row.transposed else textbook.conv
    return Built(lambda: [forward(x, w, b, **row.arguments)], list)


class Torch:
    """PyTorch's own operation, without autograd's bookkeeping, channels first or last.

    In one dimension PyTorch has no channels_last; there it gets the same layer as a 2-D one of height 1.
    """

    def __init__(self, threads: int, last: bool = False):
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.last, self.versions = torch, last, {"torch": torch.__version__}

    def build(self, row: Row, direction: str) -> Built:
        """See :class:`Built`."""
        inputs = Inputs.of(row, direction)
        x, w, b, dy = (self._tensor(array) for array in (inputs.x, inputs.w, inputs.b, inputs.dy))
        return self.built(row, direction, x, w, b, dy)

    def built(self, row: Row, direction: str, x: Any, w: Any, b: Any, dy: Any) -> Built:
        """The call on tensors."""
        axes = len(row.x) - 2
        stride, padding, dilation = [row.stride] * axes, [row.padding] * axes, [row.dilation] * axes
        flat = self.last and axes == 1
        if flat:
            stride, padding, dilation = [1, row.stride], [0, row.padding], [1, row.dilation]
            x, w = x.unsqueeze(2), w.unsqueeze(2)
            dy = dy.unsqueeze(2) if direction == "backward" else dy
        if self.last:
            x, w = self._last(x), self._last(w)
            dy = self._last(dy) if direction == "backward" else dy
        zeros, operations = [0] * len(stride), self.torch.ops.aten
        more = (stride, padding, dilation, row.transposed, zeros, row.groups)

        def arrays(tensors: Sequence[Any]) -> Arrays:
            return [self._array(t.squeeze(2) if flat and t.ndim == 4 else t) for t in tensors]

        if direction == "backward":
            backward, shape = operations.convolution_backward, [row.filters]
            return Built(lambda: backward(dy, x, w, shape, *more, [True, True, True]), arrays)
        forward = operations.convolution
        return Built(lambda: [forward(x, w, b, *more)], arrays)

    def _last(self, tensor: Any) -> Any:
        formats = {4: self.torch.channels_last, 5: self.torch.channels_last_3d}
        return tensor.contiguous(memory_format=formats[tensor.ndim])

    def _tensor(self, array: np.ndarray) -> Any:
        if array.dtype.name == "bfloat16":
            return self.torch.from_numpy(array.view(np.int16)).view(self.torch.bfloat16)
        return self.torch.from_numpy(array)

    def _array(self, tensor: Any) -> np.ndarray:
        return (tensor.float() if tensor.dtype == self.torch.bfloat16 else tensor).numpy()


class OnnxRuntime:
    """ONNX Runtime on a graph of one node, weights as constants, input and output bound once. Forward only."""

    TYPES = ("float32", "float64", "float16")

    def __init__(self, threads: int):
        import onnx
        import onnxruntime

        self.threads, self.onnx, self.runtime = threads, onnx, onnxruntime
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def build(self, row: Row, direction: str) -> Built:
        """See :class:`Built`."""
        if direction == "backward":
            raise Declined("forward only")
        if row.dtype not in self.TYPES:
            raise Declined(f"no {row.dtype} on CPUs")
        inputs = Inputs.of(row, direction)
        helper, numbers = self.onnx.helper, self.onnx.numpy_helper
        axes, kind = len(row.x) - 2, helper.np_dtype_to_tensor_dtype(inputs.x.dtype)
        node = helper.make_node(
            "ConvTranspose" if row.transposed else "Conv", ["x", "w", "b"], ["y"], kernel_shape=row.w[2:],
            strides=[row.stride] * axes, pads=[row.padding] * (2 * axes), dilations=[row.dilation] * axes, group=row.groups,
        )  # fmt: skip
        graph = helper.make_graph(
            [node], row.name, [helper.make_tensor_value_info("x", kind, row.x)],
            [helper.make_tensor_value_info("y", kind, row.y)],
            [numbers.from_array(inputs.w, "w"), numbers.from_array(inputs.b, "b")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = self.threads, 1, 4
        try:
            session = self.runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # its own exception classes have no common base
            raise Declined(str(error).partition("\n")[0][:200]) from error
        binding, out = session.io_binding(), np.zeros(row.y, inputs.x.dtype)
        values = [self.runtime.OrtValue.ortvalue_from_numpy(array) for array in (inputs.x, out)]
        binding.bind_ortvalue_input("x", values[0])
        binding.bind_ortvalue_output("y", values[1])
        return Built(lambda: session.run_with_iobinding(binding), lambda _: [values[1].numpy()], out.nbytes)


class Reference:
    """Every row in float64: by PyTorch where it is installed, else by the textbook, a sample at a time."""

    def __init__(self, threads: int):
        self.torch = Torch(threads) if find_spec("torch") else None
        self.versions: dict[str, str] = {}

    def build(self, row: Row, direction: str) -> Built:
        """See :class:`Built`."""
        inputs = Inputs.of(row, direction).widened()
        if self.torch:
            tensors = (self.torch.torch.from_numpy(a) for a in (inputs.x, inputs.w, inputs.b, inputs.dy))
            return self.torch.built(row, direction, *tensors)
        return Built(lambda: self._by_sample(row, direction, inputs), list)

    def _by_sample(self, row: Row, direction: str, inputs: Inputs) -> Arrays:
        from konv import textbook

        results = []
        for n in range(row.x[0]):
            x, dy = inputs.x[n : n + 1], inputs.dy[n : n + 1]
            built = textbook_call(textbook, row, direction, Inputs(x, inputs.w, inputs.b, dy))
            results.append(built.arrays(built.call()))
        first, *others = (list(column) for column in zip(*results))
        return [np.concatenate(first), *(np.sum(column, axis=0) for column in others)]


@dataclass(frozen=True)
class Peer:
    """An entry of the table of peers.

    Attributes
    ----------
    name, title, column : its name in files, in sentences, and over a column
    packages : what must be installed
    make : with the number of threads, the peer
    """

    name: str
    title: str
    column: str
    packages: tuple[str, ...]
    make: Callable[[int], Any]

    @property
    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [name for name in self.packages if find_spec(name) is None]


PEERS = {
    peer.name: peer
    for peer in (
        Peer("konv", "konv", "konv", (), Konv),
        Peer("konv-last", "konv channels_last", "konv last", (), lambda threads: Konv(threads, last=True)),
        Peer("torch", "PyTorch", "PyTorch", ("torch",), Torch),
        Peer(
            "torch-last", "PyTorch channels_last", "PyTorch last", ("torch",), lambda threads: Torch(threads, last=True)
        ),
        Peer("onnxruntime", "ONNX Runtime", "ONNX", ("onnx", "onnxruntime"), OnnxRuntime),
        Peer("textbook", "textbook", "textbook", (), Textbook),
    )
}
REFERENCE = Peer("reference", "float64", "float64", (), Reference)
