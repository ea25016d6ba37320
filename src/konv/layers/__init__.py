"""The NumPy face: layers with explicit ``forward`` and ``backward``, and the optimizers that train them."""

from konv.layers.activations import ReLU, Relu, Sigmoid
from konv.layers.affine import Affine
from konv.layers.base import Layer
from konv.layers.causal import CausalConv1d
from konv.layers.convolution import Convolution, ConvolutionTranspose
from konv.layers.downconv import DownConv
from konv.layers.dropout import Dropout
from konv.layers.loss import SoftmaxWithLoss
from konv.layers.normalization import BatchNormalization
from konv.layers.optimizers import SGD, Adam, Momentum
from konv.layers.pooling import AveragePooling, Pooling
from konv.layers.sequential import Sequential

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
    "Layer",
    "Momentum",
    "Pooling",
    "ReLU",
    "Relu",
    "Sequential",
    "Sigmoid",
    "SoftmaxWithLoss",
]
