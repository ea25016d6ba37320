"""Mistakes: each is refused before any work, by the right exception, with the words and the numbers that a user needs.

Sizes differ from each other wherever a message states several, so that swapped numbers would show.
"""

import inspect
import tracemalloc

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import as_strided

import konv
from compare import untouched
from konv.engine.plan import plan

X = np.ones((2, 6, 11, 13))
W = np.ones((4, 6, 3, 5))
B = np.ones(4)
DY = np.ones((2, 4, 9, 9))
T = np.ones((2, 6, 11))  # a sequence
V = np.ones((4, 6, 3))  # its weights
SMALL = np.ones((2, 6, 2, 13))
SWAPPED = np.dtype(np.float64).newbyteorder("S")


def read_only(shape):
    array = np.zeros(shape)
    array.flags.writeable = False
    return array


def overlapping_out():
    memory = np.ones(4000)
    return konv.conv(memory[:22].reshape(1, 1, 22), V[:, :1], out=memory[10:90].reshape(1, 4, 20))


def out_over_a_byte_swapped_input():
    memory = np.ones((1, 1, 9))
    return konv.conv(memory.view(SWAPPED), np.ones((1, 1, 1)), out=memory)


def out_over_itself():
    return konv.conv(T, V, out=as_strided(np.zeros(9), (2, 4, 9), (0, 0, 8)))


def layer(**options):
    return konv.Convolution(W, B, **options)


def after_forward(made, x, dout):
    made.forward(x)
    return made.backward(dout)


def stream(x=T, state=None, **options):
    return konv.CausalConv1d(V, **options).forward(x, state)


MISTAKES = {
    # arrays
    "x is a list": (lambda: konv.conv([1.0, 2.0], W), TypeError, ["x is a list", "np.asarray(x)"]),
    "x is None": (lambda: konv.conv(None, W), TypeError, ["x=None: expected a NumPy array"]),
    "x is a number": (lambda: konv.conv(np.float64(1), W), TypeError, ["x=np.float64(1.0): expected a NumPy array"]),
    "x is a tensor": (lambda: konv.conv(torch.ones(2, 6, 11), V), TypeError, ["torch.Tensor", "x.detach().numpy()"]),
    "w is a tensor": (
        lambda: konv.conv(T, torch.ones(4, 6, 3)),
        TypeError,
        ["w is a torch.Tensor", "w.detach().numpy()"],
    ),
    "x is masked": (lambda: konv.conv(np.ma.masked_array(T), V), TypeError, ["x is a masked array", "x.filled(...)"]),
    "w is a tuple": (lambda: konv.conv(T, (1, 2)), TypeError, ["w is a tuple", "np.asarray(w)"]),
    "b is a list": (lambda: konv.conv(X, W, [0.0] * 4), TypeError, ["b is a list"]),
    "b is a number": (lambda: konv.conv(X, W, 0.5), TypeError, ["b=0.5: expected a NumPy array"]),
    "w is None": (lambda: konv.conv(X, None), TypeError, ["w=None: expected a NumPy array"]),
    "dy is a list": (lambda: konv.conv_backward([1.0], X, W), TypeError, ["dy is a list"]),
    # element types
    "integers": (lambda: konv.conv(X.astype(int), W), TypeError, ["x has dtype int64", "x.astype(np.float32)"]),
    "integer weights": (lambda: konv.conv(X, W.astype("u1")), TypeError, ["w has dtype uint8", "w.astype(np.float32)"]),
    "bool": (lambda: konv.conv(X > 0, W), TypeError, ["x has dtype bool", "x.astype(np.float32)"]),
    "complex": (
        lambda: konv.conv(X + 0j, W),
        TypeError,
        ["x has dtype complex128", "float16, float32, float64, bfloat16"],
    ),
    "objects": (lambda: konv.conv(X.astype(object), W), TypeError, ["x has dtype object"]),
    "strings": (lambda: konv.conv(X.astype(str), W), TypeError, ["x has dtype <U32"]),
    "long double": (lambda: konv.conv(X.astype("g"), W), TypeError, ["x has dtype", "x.astype(np.float32)"]),
    "two types": (
        lambda: konv.conv(X, W.astype("f4")),
        TypeError,
        ["x is float64 and w is float32", "w.astype(x.dtype)"],
    ),
    "a bias of another type": (lambda: konv.conv(X, W, B.astype("f2")), TypeError, ["x is float64 and b is float16"]),
    "dy of another type": (
        lambda: konv.conv_backward(DY.astype("f4"), X, W),
        TypeError,
        ["dy is float32 and x is float64"],
    ),
    "integers to pool": (lambda: konv.max_pool(X.astype(int), 2), TypeError, ["x has dtype int64"]),
    "complex to pool": (lambda: konv.avg_pool(X + 0j, 2), TypeError, ["x has dtype complex128"]),
    "a plan for integers": (lambda: plan(X.shape, W.shape, dtype=np.int32), TypeError, ["int32", "float32"]),
    # shapes
    "two axes": (lambda: konv.conv(X[0, 0], W), ValueError, ["x has shape (11, 13)", "(N, C, *spatial)"]),
    "six axes": (lambda: konv.conv(np.ones((1,) * 6), W), ValueError, ["x has shape (1, 1, 1, 1, 1, 1)", "1, 2 or 3"]),
    "other number of axes": (lambda: konv.conv(X, V), ValueError, ["w has shape (4, 6, 3)", "(2, 6, 11, 13)"]),
    "channels": (lambda: konv.conv(X[:, :5], W), ValueError, ["C // groups = 5 // 1 = 5, it is 6"]),
    "group channels": (lambda: konv.conv(X, W, groups=2), ValueError, ["C // groups = 6 // 2 = 3, it is 6"]),
    "channels last": (
        lambda: konv.conv(X.transpose(0, 2, 3, 1), W),
        ValueError,
        [
            "second axis must be C // groups = 11 // 1 = 11, it is 6; if x has its channels last, pass np.moveaxis(x, -1, 1)"
        ],
    ),
    "channels last, groups": (
        lambda: konv.conv(X.transpose(0, 2, 3, 1), W[:, :3], groups=2),
        ValueError,
        ["groups=2", "C=11", "np.moveaxis(x, -1, 1)"],
    ),
    "channels last, transposed": (
        lambda: konv.conv_transpose(np.ones((2, 7, 5, 4)), W),
        ValueError,
        ["x has 7 channels", "np.moveaxis(x, -1, 1)"],
    ),
    "one image": (lambda: konv.conv(X[0], W), ValueError, ["(6, 11, 13)", "for one sample pass x[None]"]),
    "one image, groups": (lambda: konv.conv(X[0], W[:, :3], groups=2), ValueError, ["for one sample pass x[None]"]),
    "one sequence": (lambda: konv.conv(X[0, :, 0], V), ValueError, ["(6, 13)", "for one sample pass x[None]"]),
    "one image, transposed": (lambda: konv.conv_transpose(X[0, :4], W), ValueError, ["for one sample pass x[None]"]),
    "grey images": (
        lambda: konv.conv(X[0], W[:, :1]),
        ValueError,
        ["(6, 11, 13)", "an axis of channels pass x[:, None]"],
    ),
    "a grey image": (lambda: konv.conv(X[0, 0], W[:, :1]), ValueError, ["(11, 13)", "pass x[None, None]"]),
    "groups and channels": (lambda: konv.conv(X, W, groups=4), ValueError, ["groups=4", "C=6", "F=4"]),
    "groups and filters": (lambda: konv.conv(X, W[:, :2], groups=3), ValueError, ["groups=3", "C=6", "F=4"]),
    "bias": (lambda: konv.conv(X, W, np.ones(6)), ValueError, ["b has shape (6,)", "(F,) = (4,)"]),
    "bias of two axes": (lambda: konv.conv(X, W, np.ones((4, 1))), ValueError, ["b has shape (4, 1)", "(4,)"]),
    "empty channels": (lambda: konv.conv(X[:, :0], W), ValueError, ["x has shape (2, 0, 11, 13)", "axis 1 is empty"]),
    "empty axis": (lambda: konv.conv(X[..., :0], W), ValueError, ["(2, 6, 11, 0)", "axis 3 is empty"]),
    "no filters": (lambda: konv.conv(X, W[:0]), ValueError, ["w has shape (0, 6, 3, 5)", "axis 0 is empty"]),
    "empty kernel": (lambda: konv.conv(X, W[:, :, :0]), ValueError, ["w has shape (4, 6, 0, 5)", "axis 2 is empty"]),
    "kernel and input": (
        lambda: konv.conv(SMALL, W, padding=((0, 0), (1, 4))),
        ValueError,
        ["spatial axis 0", "1 * (3 - 1) + 1 = 3 > 2 + 0 + 0 = 2"],
    ),
    "dilated kernel and padded input": (
        lambda: konv.conv(X, W, dilation=4, padding=((0, 0), (2, 1))),
        ValueError,
        ["spatial axis 1", "4 * (5 - 1) + 1 = 17 > 13 + 2 + 1 = 16"],
    ),
    "dy": (lambda: konv.conv_backward(DY[:, :, :8], X, W), ValueError, ["dy has shape (2, 4, 8, 9)", "(2, 4, 9, 9)"]),
    "dy of another batch": (lambda: konv.conv_backward(DY[:1], X, W), ValueError, ["(1, 4, 9, 9)", "(2, 4, 9, 9)"]),
    # numbers
    "stride 0": (lambda: konv.conv(X, W, stride=0), ValueError, ["stride=0", "at least 1"]),
    "negative stride on an axis": (lambda: konv.conv(X, W, stride=(1, -2)), ValueError, ["stride[1]=-2"]),
    "stride of a float": (lambda: konv.conv(X, W, stride=2.0), TypeError, ["stride=2.0", "integer, not float"]),
    "stride of a bool": (lambda: konv.conv(X, W, stride=True), TypeError, ["stride=True", "not a bool"]),
    "stride of a string": (lambda: konv.conv(X, W, stride="2"), TypeError, ["stride='2'", "not str"]),
    "stride of None": (lambda: konv.conv(X, W, stride=None), TypeError, ["stride=None", "NoneType"]),
    "three strides": (lambda: konv.conv(X, W, stride=(1, 2, 3)), ValueError, ["(1, 2, 3)", "3 entries", "2 axes"]),
    "a float among strides": (lambda: konv.conv(X, W, stride=(1, 2.5)), TypeError, ["stride[1]=2.5"]),
    "dilation 0": (lambda: konv.conv(X, W, dilation=(2, 0)), ValueError, ["dilation[1]=0", "at least 1"]),
    "groups 0": (lambda: konv.conv(X, W, groups=0), ValueError, ["groups=0", "at least 1"]),
    "groups of a float": (lambda: konv.conv(X, W, groups=2.0), TypeError, ["groups=2.0", "not float"]),
    "groups per axis": (lambda: konv.conv(X, W, groups=(2, 2)), TypeError, ["groups=(2, 2)", "tuple"]),
    # padding
    "negative padding": (lambda: konv.conv(X, W, padding=-1), ValueError, ["padding=-1", "at least 0"]),
    "negative padding at an end": (
        lambda: konv.conv(X, W, padding=((0, 1), (2, -3))),
        ValueError,
        ["padding[1][1]=-3"],
    ),
    "padding of a float": (lambda: konv.conv(X, W, padding=1.5), TypeError, ["padding=1.5", "not float"]),
    "padding of None": (lambda: konv.conv(X, W, padding=None), TypeError, ["padding=None"]),
    "an unknown padding": (
        lambda: konv.conv(X, W, padding="SAME"),
        ValueError,
        ["'SAME'", "'same'", "'same_lower'", "'causal'"],
    ),
    "causal images": (lambda: konv.conv(X, W, padding="causal"), ValueError, ["'causal'", "one spatial axis", "2"]),
    "three paddings": (lambda: konv.conv(X, W, padding=(1, 2, 3)), ValueError, ["(1, 2, 3)", "3 entries", "2 axes"]),
    "a pair for one axis": (lambda: konv.conv(T, V, padding=(1, 2)), ValueError, ["padding=((1, 2),)"]),
    "a triple": (lambda: konv.conv(T, V, padding=((1, 2, 3),)), ValueError, ["padding[0]=(1, 2, 3)", "(low, high)"]),
    "an unknown mode": (
        lambda: konv.conv(X, W, padding_mode="mirror"),
        ValueError,
        ["'mirror'", "'reflect'", "'circular'"],
    ),
    "a mode of None": (lambda: konv.conv(X, W, padding_mode=None), ValueError, ["padding_mode=None", "'zeros'"]),
    "reflecting too much": (
        lambda: konv.conv(X, W, padding=((3, 11), (0, 0)), padding_mode="reflect"),
        ValueError,
        ["padding=(3, 11)", "spatial axis 0", "length - 1 = 10", "axis of 11"],
    ),
    "going around twice": (
        lambda: konv.conv(X, W, padding=(0, 14), padding_mode="circular"),
        ValueError,
        ["padding=(14, 14)", "spatial axis 1", "length = 13"],
    ),
    # sizes
    "too large to index": (
        lambda: konv.conv(T, V, padding=2**62),
        ValueError,
        ["padded x", "9223372036854775819", "bytes"],
    ),
    "too large a kernel": (
        lambda: konv.geometry(T.shape, (4, 6, 2**60), padding=2**61),
        ValueError,
        ["bytes", "more than"],
    ),
    "a shape that is no sequence": (lambda: konv.geometry(7, W.shape), TypeError, ["x_shape", "int"]),
    "an array for a shape": (lambda: konv.geometry(X, W), TypeError, ["pass the shape of yours, (2, 6, 11, 13)"]),
    "a shape with a float": (lambda: konv.geometry((2, 6, 11.0), V.shape), TypeError, ["x_shape[2]=11.0"]),
    "a shape with a negative axis": (lambda: konv.geometry(T.shape, (4, 6, -3)), ValueError, ["w_shape[2]=-3"]),
    "a plan of an unknown kind": (
        lambda: plan(T.shape, V.shape, kind="backward"),
        ValueError,
        ["'backward'", "'input_gradient'"],
    ),
    # out=
    "out of another shape": (
        lambda: konv.conv(X, W, out=np.zeros((2, 4, 9, 8))),
        ValueError,
        ["out has shape (2, 4, 9, 8)", "(2, 4, 9, 9)"],
    ),
    "out of another type": (
        lambda: konv.conv(X, W, out=DY.astype("f4")),
        ValueError,
        ["out has", "float32", "float64"],
    ),
    "out of another byte order": (
        lambda: konv.conv(X, W, out=DY.astype(SWAPPED)),
        ValueError,
        ["out has", str(SWAPPED)],
    ),
    "out is read-only": (lambda: konv.conv(X, W, out=read_only((2, 4, 9, 9))), ValueError, ["out is read-only"]),
    "out is a list": (lambda: konv.conv(X, W, out=[0.0]), TypeError, ["out is a list"]),
    "out is masked": (lambda: konv.conv(X, W, out=np.ma.zeros((2, 4, 9, 9))), TypeError, ["out is a masked array"]),
    "out over x": (overlapping_out, ValueError, ["out shares memory with x"]),
    "out over a byte-swapped x": (out_over_a_byte_swapped_input, ValueError, ["out shares memory with x"]),
    "out over itself": (out_over_itself, ValueError, ["out"]),
    # need
    "an unknown need": (
        lambda: konv.conv_backward(DY, X, W, need=("x", "dw")),
        ValueError,
        ["need=('x', 'dw')", "'w'"],
    ),
    "need of None": (lambda: konv.conv_backward(DY, X, W, need=None), TypeError, ["need=None", "'x'"]),
    "need of lists": (lambda: konv.conv_backward(DY, X, W, need=[["x"]]), ValueError, ["need=[['x']]", "'w'"]),
    "need of a number": (lambda: konv.conv_backward(DY, X, W, need=1), TypeError, ["need=1", "'x'"]),
    # transposed convolution
    "transposed channels": (lambda: konv.conv_transpose(X, W), ValueError, ["x has 6 channels", "w has 4"]),
    "transposed groups": (
        lambda: konv.conv_transpose(T, np.ones((6, 2, 3)), groups=4),
        ValueError,
        ["groups=4", "C=6"],
    ),
    "transposed bias": (
        lambda: konv.conv_transpose(T, np.ones((6, 2, 3)), np.ones(2), groups=3),
        ValueError,
        ["b has shape (2,)", "(6,)"],
    ),
    "transposed same": (
        lambda: konv.conv_transpose(T, np.ones((6, 2, 3)), padding="same"),
        ValueError,
        ["'same'", "'valid'"],
    ),
    "output padding": (
        lambda: konv.conv_transpose(T, np.ones((6, 2, 3)), stride=2, dilation=3, output_padding=3),
        ValueError,
        ["output_padding=3", "max(2, 3)"],
    ),
    "nothing left": (
        lambda: konv.conv_transpose(T[..., :2], np.ones((6, 2, 3)), stride=2, padding=((4, 3),), output_padding=1),
        ValueError,
        ["(2 - 1) * 2 - 4 - 3 + 3 + 1 = -1", "at least one cell"],
    ),
    "transposed dy": (
        lambda: konv.conv_transpose_backward(T, T, np.ones((6, 2, 3)), stride=2),
        ValueError,
        ["dy has shape (2, 6, 11)", "(2, 2, 23)"],
    ),
    # windows
    "windows of padding alone": (
        lambda: konv.max_pool(X, 2, padding=((0, 0), (2, 1))),
        ValueError,
        ["spatial axis 1", "padding alone"],
    ),
    "kernel size 0": (lambda: konv.avg_pool(X, 0), ValueError, ["kernel_size=0", "at least 1"]),
    "kernel size of a float": (lambda: konv.max_pool(X, (2, 2.0)), TypeError, ["kernel_size[1]=2.0"]),
    "kernel sizes": (lambda: konv.unfold(X, (2, 2, 2)), ValueError, ["kernel_size=(2, 2, 2)", "2 axes"]),
    "a large pool": (lambda: konv.max_pool(X, 12), ValueError, ["spatial axis 0", "12 > 11 + 0 + 0 = 11"]),
    "pooled dy": (lambda: konv.max_pool_backward(X, X, 2), ValueError, ["dy has shape (2, 6, 11, 13)", "(2, 6, 5, 6)"]),
    "padding without end": (lambda: konv.max_pool(T, 2, padding=2**50), ValueError, ["window 0 of", "padding alone"]),
    "a mean's flag": (
        lambda: konv.avg_pool(X, 2, count_include_pad="no"),
        TypeError,
        ["count_include_pad='no'", "True or False"],
    ),
    "a mean's flag again": (
        lambda: konv.avg_pool_backward(X, X, 2, count_include_pad=None),
        TypeError,
        ["count_include_pad=None"],
    ),
    "PyTorch's name of pad": (
        lambda: konv.Convolution(W, None, padding=1),
        TypeError,
        ["Convolution() has no argument 'padding'; here it is called pad"],
    ),
    "PyTorch's name of a ratio": (lambda: konv.Dropout(p=0.1), TypeError, ["'p'; here it is called dropout_ratio"]),
    "the book's name of padding": (
        lambda: konv.conv(X, W, pad=1),
        TypeError,
        ["conv() has no argument 'pad'; here it is called padding"],
    ),
    "the book's name in backward": (
        lambda: konv.conv_backward(DY, X, W, pad=1),
        TypeError,
        ["conv_backward() has no argument 'pad'; here it is called padding"],
    ),
    "PyTorch's name of x": (lambda: konv.unfold(input=X, kernel_size=2), TypeError, ["'input'; here it is called x"]),
    "PyTorch's name of w": (
        lambda: konv.conv(X, weight=W),
        TypeError,
        ["conv() has no", "'weight'; here it is called w"],
    ),
    "the book's name of a window": (lambda: konv.max_pool(X, pool_size=2), TypeError, ["it is called kernel_size"]),
    "no w": (lambda: konv.conv(X), TypeError, ["conv() is missing w: call conv(x, w, ...)"]),
    "a transposed name": (lambda: konv.conv_transpose(X, W, strides=1), TypeError, ["'strides'; near: stride"]),
    "a name of a transposed gradient": (
        lambda: konv.conv_transpose_backward(X, X, W, padding_mode="zeros"),
        TypeError,
        ["no argument 'padding_mode'; near: padding, output_padding"],
    ),
    "a pool's name": (lambda: konv.max_pool(X, 2, strides=2), TypeError, ["max_pool() has no", "near: stride"]),
    "a pool's name backward": (lambda: konv.max_pool_backward(X, X, 2, pad=1), TypeError, ["called padding"]),
    "a mean's name": (lambda: konv.avg_pool(X, 2, ceil_mode=True), TypeError, ["no argument 'ceil_mode'"]),
    "a mean's name backward": (lambda: konv.avg_pool_backward(X, X, 2, pad=1), TypeError, ["called padding"]),
    "a geometry's name": (
        lambda: konv.geometry(X.shape, W.shape, pad=1),
        TypeError,
        ["geometry() has no argument 'pad'; here it is called padding"],
    ),
    "a plan's name": (lambda: konv.plan(X.shape, W.shape, pad=1), TypeError, ["plan() has no", "called padding"]),
    "an unfolding's name": (lambda: konv.unfold(X, 2, pad=1), TypeError, ["unfold() has no", "called padding"]),
    "the matrix's name": (lambda: konv.im2col(X, 2, 2, padding=1), TypeError, ["im2col() has no", "called pad"]),
    "the matrix's window": (lambda: konv.im2col(X, kernel_size=2), TypeError, ["filter_h and filter_w"]),
    "a part of a name": (
        lambda: konv.DownConv(hidden=64),
        TypeError,
        ["DownConv() has no argument 'hidden'; near: hidden_size"],
    ),
    "an optimizer's name": (lambda: konv.Adam(learning_rate=0.1), TypeError, ["Adam() has no", "here it is called lr"]),
    "a name misspelt": (lambda: layer(strides=2), TypeError, ["no argument 'strides'; near: stride"]),
    "a name that no layer has": (lambda: layer(colour=2), TypeError, ["Convolution() has no argument 'colour'"]),
    "a layer's flag": (lambda: konv.AveragePooling(2, 2, count_include_pad=1), TypeError, ["count_include_pad=1"]),
    "mean's dy": (lambda: konv.avg_pool_backward(X, X, 2), ValueError, ["dy has shape (2, 6, 11, 13)", "(2, 6, 5, 6)"]),
    "unfold a list": (lambda: konv.unfold([1], 2), TypeError, ["x is a list"]),
    "fold of two axes": (
        lambda: konv.fold(np.ones((6, 4)), 5, 2),
        ValueError,
        ["columns has shape (6, 4)", "prod(kernel)"],
    ),
    "fold's rows": (lambda: konv.fold(np.ones((1, 7, 4)), 5, 2), ValueError, ["(1, 7, 4)", "multiple of 2"]),
    "fold's windows": (
        lambda: konv.fold(np.ones((1, 12, 10)), (5, 4), (3, 2)),
        ValueError,
        ["(1, 12, 10)", "3 * 3 = 9"],
    ),
    "fold to a float in an array": (
        lambda: konv.fold(np.ones((1, 6, 4)), np.array(5.0), 2),
        TypeError,
        ["output_size=array(5.)", "integer"],
    ),
    "fold to a float": (lambda: konv.fold(np.ones((1, 6, 4)), 5.0, 2), TypeError, ["output_size=5.0", "integer"]),
    "fold to a negative size": (lambda: konv.fold(np.ones((1, 6, 4)), -5, 2), ValueError, ["output_size=-5"]),
    "fold to nothing": (lambda: konv.fold(np.ones((1, 6, 4)), (), 2), ValueError, ["output_size=()"]),
    # the book's functions and layers
    "im2col of a list": (
        lambda: konv.im2col([[1.0]], 2, 2),
        TypeError,
        ["input_data is a list", "np.asarray(input_data)"],
    ),
    "im2col of masked images": (
        lambda: konv.im2col(np.ma.masked_array(X), 2, 2),
        TypeError,
        ["input_data is a masked array"],
    ),
    "im2col of a sequence": (lambda: konv.im2col(T, 2, 2), ValueError, ["(N, C, H, W)", "(2, 6, 11)"]),
    "im2col's filter": (lambda: konv.im2col(X, 3, 14), ValueError, ["spatial axis 1", "14 > 13 + 0 + 0 = 13"]),
    "im2col's filter_h": (lambda: konv.im2col(X, 2.0, 3), TypeError, ["filter_h=2.0", "integer, not float"]),
    "im2col's filter_w": (lambda: konv.im2col(X, 2, 0), ValueError, ["filter_w=0", "at least 1"]),
    "im2col's filter of two": (lambda: konv.im2col(X, (2, 3), 3), TypeError, ["filter_h=(2, 3)", "not tuple"]),
    "im2col's pad": (lambda: konv.im2col(X, 2, 3, 1, -1), ValueError, ["pad=-1", "at least 0"]),
    "im2col's unknown pad": (lambda: konv.im2col(X, 2, 3, 1, "all"), ValueError, ["pad='all'", "'same'"]),
    "col2im's filter_w": (lambda: konv.col2im(X, X.shape, 2, True), TypeError, ["filter_w=True", "not a bool"]),
    "col2im to a float": (
        lambda: konv.col2im(X, (2, 6, 11, 13.0), 2, 3),
        TypeError,
        ["input_shape[3]=13.0", "not float"],
    ),
    "col2im to an empty axis": (
        lambda: konv.col2im(X, (2, 6, 0, 13), 2, 3),
        ValueError,
        ["input_shape[2]=0", "at least 1"],
    ),
    "col2im to a word": (lambda: konv.col2im(X, "NCHW", 2, 3), TypeError, ["input_shape='NCHW'", "(N, C, H, W)"]),
    "col2im of a list": (lambda: konv.col2im([1.0], X.shape, 2, 2), TypeError, ["col is a list"]),
    "col2im of another shape": (
        lambda: konv.col2im(np.ones((7, 3)), (2, 3, 4, 5), 2, 3),
        ValueError,
        ["(2 * 3 * 3, 3 * 2 * 3) = (18, 18)", "(7, 3)"],
    ),
    "col2im to a number": (lambda: konv.col2im(np.ones((7, 3)), 5, 2, 3), TypeError, ["input_shape"]),
    "col2im to three axes": (
        lambda: konv.col2im(np.ones((7, 3)), (2, 3, 4), 2, 3),
        ValueError,
        ["input_shape=(2, 3, 4)", "(N, C, H, W)"],
    ),
    "W is a list": (lambda: konv.Convolution([[1.0]], None), TypeError, ["W is a list", "np.asarray(W)"]),
    "W of two axes": (
        lambda: konv.Convolution(W[0, 0], None),
        ValueError,
        ["W has shape (3, 5)", "1, 2 or 3 of the kernel"],
    ),
    "integer W": (
        lambda: konv.Convolution(W.astype(int), None),
        TypeError,
        ["W has dtype int64", "W.astype(np.float32)"],
    ),
    "empty W": (lambda: konv.Convolution(W[..., :0], None), ValueError, ["W has shape (4, 6, 3, 0)"]),
    "a layer's b": (
        lambda: konv.Convolution(W, np.ones(6)),
        ValueError,
        ["b has shape (6,)", "(FN,) = (4,)", "(4, 6, 3, 5)"],
    ),
    "a layer's integer b": (lambda: konv.Convolution(W, np.ones(4, int)), TypeError, ["b has dtype int64"]),
    "a layer's stride": (lambda: layer(stride=0), ValueError, ["stride=0"]),
    "a layer's pad": (lambda: layer(pad=-2), ValueError, ["pad=-2"]),
    "a layer's pad of a float": (lambda: layer(pad=0.5), TypeError, ["pad=0.5", "not float"]),
    "a layer's unknown pad": (lambda: layer(pad="full"), ValueError, ["pad='full'", "'same'"]),
    "a layer's causal pad": (lambda: layer(pad="causal"), ValueError, ["pad='causal'", "one spatial axis"]),
    "a layer's dilation": (lambda: layer(dilation=(1, 2, 3)), ValueError, ["dilation=(1, 2, 3)", "2 axes"]),
    "a layer's groups": (lambda: layer(groups=3), ValueError, ["groups=3", "(4, 6, 3, 5)"]),
    "a layer's groups per axis": (lambda: layer(groups=(2,)), TypeError, ["groups=(2,)"]),
    "a layer's mode": (lambda: layer(padding_mode="mirror"), ValueError, ["padding_mode='mirror'"]),
    "a layer's input": (lambda: layer().forward(X[:, :5]), ValueError, ["(4, 6, 3, 5)", "(2, 5, 11, 13)"]),
    "a layer's flat input": (lambda: layer().forward(X[0]), ValueError, ["(4, 6, 3, 5)", "(6, 11, 13)"]),
    "a layer's small input": (lambda: layer().forward(SMALL), ValueError, ["1 * (3 - 1) + 1 = 3 > 2 + 0 + 0 = 2"]),
    "a layer's tensor": (lambda: layer().forward(torch.ones(2, 6, 11, 13)), TypeError, ["x.detach().numpy()"]),
    "a layer's dout": (
        lambda: after_forward(layer(), X, DY[:1]),
        ValueError,
        ["dout has shape (1, 4, 9, 9)", "(2, 4, 9, 9)"],
    ),
    "a layer's dout in a list": (lambda: after_forward(layer(), X, [1.0]), TypeError, ["dout is a list"]),
    "a layer's integer dout": (lambda: after_forward(layer(), X, DY.astype(int)), TypeError, ["dout has dtype int64"]),
    "no forward": (lambda: layer().backward(DY), RuntimeError, ["Convolution.backward", "forward has not run"]),
    "no training": (lambda: after_forward(layer().eval(), X, DY), RuntimeError, ["inference mode", "train()"]),
    "a transposed layer's b": (
        lambda: konv.ConvolutionTranspose(W, B, groups=2),
        ValueError,
        ["b has shape (4,)", "(12,)", "(4, 6, 3, 5)"],
    ),
    "a transposed layer's output padding": (
        lambda: konv.ConvolutionTranspose(W, None, stride=3, output_padding=(1, 3)),
        ValueError,
        ["output_padding=(1, 3)", "max(stride, dilation) = 3"],
    ),
    "a transposed layer's pad": (lambda: konv.ConvolutionTranspose(W, None, pad="same"), ValueError, ["pad='same'"]),
    "a pool of 0": (lambda: konv.Pooling(0, 2), ValueError, ["pool_h=0"]),
    "a pool of a float": (lambda: konv.Pooling(2, 2.0), TypeError, ["pool_w=2.0"]),
    "a pool's stride": (lambda: konv.Pooling(2, 2, stride=(1, 2, 3)), ValueError, ["stride=(1, 2, 3)"]),
    "a pool's pad": (lambda: konv.AveragePooling(2, 2, 2, "all"), ValueError, ["pad='all'"]),
    "a pool's sequence": (
        lambda: konv.Pooling(2, 2).forward(T),
        ValueError,
        ["(2, 6, 11)", "(N, C, H, W)", "x[None]", "x[:, None]"],
    ),
    "a pool's dout": (
        lambda: after_forward(konv.Pooling(2, 3), X, X),
        ValueError,
        ["dout has shape (2, 6, 11, 13)", "(2, 6, 5, 6)"],
    ),
    # streams
    "a stream of images": (lambda: stream(X), ValueError, ["x has shape (2, 6, 11, 13)", "(N, C, L)"]),
    "a stream's channels": (
        lambda: stream(T[:, :5]),
        ValueError,
        ["x has shape (2, 5, 11)", "C = W.shape[1] * groups = 6"],
    ),
    "a stream's weights": (
        lambda: konv.CausalConv1d(W),
        ValueError,
        ["W has shape (4, 6, 3, 5)", "(FN, C // groups, K)"],
    ),
    "a stream's bias": (lambda: konv.CausalConv1d(V, np.ones(6)), ValueError, ["b has shape (6,)", "(4,)"]),
    "a state of another length": (
        lambda: stream(state=np.ones((2, 6, 5)), dilation=2),
        ValueError,
        ["past_state has shape (2, 6, 5)", "(2, 6, 4)"],
    ),
    "a state of too long a phase": (
        lambda: stream(state=np.ones((2, 6, 5)), stride=3),
        ValueError,
        ["past_state has shape (2, 6, 5)", "2 to 4"],
    ),
    "a state of another batch": (lambda: stream(state=np.ones((3, 6, 2))), ValueError, ["(3, 6, 2)", "(2, 6, 2)"]),
    "a state of another type": (lambda: stream(state=np.ones((2, 6, 2), "f4")), TypeError, ["past_state is float32"]),
    "a state in a list": (lambda: stream(state=[0.0]), TypeError, ["past_state is a list"]),
    "the gradient of a state": (
        lambda: (lambda made: (made.forward(T), made.backward(np.ones((2, 4, 11)), np.ones((2, 6, 3)))))(
            konv.CausalConv1d(V)
        ),
        ValueError,
        ["dpresent_state has shape (2, 6, 3)", "(2, 6, 2)"],
    ),
}


@pytest.mark.parametrize("call, error, words", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_refused_in_the_users_words(call, error, words):
    with untouched(X, W, B, DY, T, V), pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert len(str(caught.value)) <= 400


def test_what_tells_names_shows_its_own():
    """Not the arguments of what stands around a function."""
    functions = [getattr(konv, name) for name in konv.__all__ if inspect.isfunction(getattr(konv, name))]
    variadic = {
        f.__name__: p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind in (2, 4)
    }
    assert variadic == {"gradcheck": "inputs"}
    assert list(inspect.signature(konv.Adam).parameters) == ["lr", "beta1", "beta2"]


def test_there_are_many_mistakes():
    print(len(MISTAKES), "mistakes")
    assert len(MISTAKES) >= 120


@pytest.mark.parametrize("size", [10**14, 10**15])
def test_what_fits_an_index_but_not_the_machine_is_a_memory_error(size):
    """No address space holds it; NumPy says so when it asks for the memory, and nothing else goes wrong."""
    with pytest.raises(MemoryError):
        konv.conv(T, V, padding=size)


@pytest.mark.parametrize("number", [2**20, 2**40, 2**62, 2**70], ids=["2**20", "2**40", "2**62", "2**70"])
def test_a_stride_or_dilation_beyond_the_axis_means_nothing_and_costs_nothing(number):
    """One output has no stride, one tap no dilation: any number gives what the first beyond the axis gives."""
    rng = np.random.default_rng(0)
    x, v, tap = rng.standard_normal((2, 6, 11)), rng.standard_normal((4, 6, 3)), rng.standard_normal((4, 6, 1))

    def results(n):
        y = konv.conv(x, v, stride=n)
        yield y
        yield from konv.conv_backward(y, x, v, stride=n, padding=1, need=("x", "w"))
        yield konv.conv(x, tap, dilation=n)
        yield from konv.conv_backward(x[:, :4], x, tap, dilation=n)
        yield konv.conv_transpose(x[:, :, :1], v.swapaxes(0, 1), stride=n)
        yield from konv.conv_transpose_backward(y, x[:, :, :1], tap.swapaxes(0, 1), stride=n, dilation=n)
        yield konv.max_pool(x, 3, stride=n)
        yield konv.avg_pool(x, 1, dilation=n)
        yield konv.unfold(x, 3, stride=n)
        yield konv.Convolution(v, None, n).forward(x)
        yield konv.CausalConv1d(v, stride=n).forward(x)[0]
        yield konv.im2col(x[None], 2, 3, n)

    right = list(results(14))  # also compiles what is needed
    tracemalloc.start()
    found = list(results(number))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak <= 1e6
    for a, b in zip(found, right, strict=True):
        assert np.array_equal(a, b)
    g = konv.geometry(x.shape, v.shape, stride=number, padding=1)
    assert (g.output, g.stride, g.read(0).sum(), g.unread_cells) == ((1,), (14,), 2, 9)


def test_a_subclass_that_is_an_array_gives_an_array():
    class Image(np.ndarray):
        pass

    y = konv.conv(T.view(Image), V)
    assert type(y) is np.ndarray
    assert type(konv.max_pool(T.view(Image), 2)) is np.ndarray
    assert type(konv.unfold(T.view(Image), 2)) is np.ndarray


def test_out_beside_x_in_the_same_memory_is_taken():
    memory = np.zeros((2, 1, 9))
    memory[0] = np.arange(9)
    konv.conv(memory[:1], np.ones((1, 1, 1)), out=memory[1:])
    assert (memory[1] == memory[0]).all()


@pytest.mark.parametrize("method", ["read", "real_taps"])
def test_a_spatial_axis_that_is_not_there(method):
    ask = getattr(konv.geometry((1, 1, 4, 6), (1, 1, 3, 3)), method)
    with pytest.raises(ValueError, match="axis=5: expected one of the 2 spatial axes, 0 to 1"):
        ask(5)
    with pytest.raises(ValueError, match="axis=-1: must be at least 0"):
        ask(-1)
    with pytest.raises(TypeError, match=r"axis=0\.5: expected an integer, not float"):
        ask(0.5)


def test_numbers_that_no_float_can_hold():
    for name, make in (("lr", konv.SGD), ("lr", konv.Adam)):
        with pytest.raises(ValueError, match=rf"{name} must be a number that a float can hold, got 10{{400}}$"):
            make(**{name: 10**400})
    with pytest.raises(ValueError, match=r"b=10{400}: expected a number that float64 can hold"):
        konv.Convolution(np.ones((1, 1, 2)), 10**400)


@pytest.mark.parametrize("layer", [konv.ReLU(), konv.Sigmoid(), konv.Dropout(0.5), konv.Dropout(0.5).eval()], ids=str)
def test_an_array_of_no_axes_stays_an_array(layer):
    x = np.array(2, np.float32)
    results = [layer.forward(x), *([layer.backward(x)] if layer.training else [])]
    assert all(type(r) is np.ndarray and r.shape == () and r.dtype == np.float32 for r in results)
