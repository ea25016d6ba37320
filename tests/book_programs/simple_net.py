"""conv - relu - pool - affine - relu - affine - softmax: uses its layers as the book's chapter 7 does."""

from collections import OrderedDict

import numpy as np
from common.layers import Affine, Convolution, Pooling, Relu, SoftmaxWithLoss


class SimpleNet:
    """Parameters in a dictionary that shares its arrays with the layers; layers in an OrderedDict."""

    def __init__(self, size=12, filters=6, hidden=20, classes=3, seed=0):
        rng = np.random.default_rng(seed)
        flat = filters * ((size - 2) // 2) ** 2
        self.params = {}
        for number, shape in enumerate([(filters, 1, 3, 3), (flat, hidden), (hidden, classes)], 1):
            self.params[f"W{number}"] = 0.1 * rng.standard_normal(shape)
            self.params[f"b{number}"] = np.zeros(filters if number == 1 else shape[1])

        self.layers = OrderedDict()
        self.layers["conv"] = Convolution(self.params["W1"], self.params["b1"], 1, 0)
        self.layers["relu 1"] = Relu()
        self.layers["pool"] = Pooling(pool_h=2, pool_w=2, stride=2)
        self.layers["affine 1"] = Affine(self.params["W2"], self.params["b2"])
        self.layers["relu 2"] = Relu()
        self.layers["affine 2"] = Affine(self.params["W3"], self.params["b3"])
        self.last_layer = SoftmaxWithLoss()
        self.trained = [self.layers[name] for name in ("conv", "affine 1", "affine 2")]

    def predict(self, x):
        for layer in self.layers.values():
            x = layer.forward(x)
        return x

    def loss(self, x, t):
        return self.last_layer.forward(self.predict(x), t)

    def accuracy(self, x, t):
        return np.mean(self.predict(x).argmax(axis=1) == t)

    def gradient(self, x, t):
        self.loss(x, t)
        dout = self.last_layer.backward(1)
        for layer in reversed(list(self.layers.values())):
            dout = layer.backward(dout)
        grads = {}
        for number, layer in enumerate(self.trained, 1):
            grads[f"W{number}"], grads[f"b{number}"] = layer.dW, layer.db
        return grads

    def numerical_gradient(self, x, t, h=1e-4):
        """Moves each parameter where it stands, in the array that dictionary and layer share."""
        grads = {}
        for key, param in self.params.items():
            grads[key] = np.zeros_like(param)
            for place in np.ndindex(param.shape):
                kept, losses = param[place], []
                for moved in (kept + h, kept - h):
                    param[place] = moved
                    losses.append(self.loss(x, t))
                param[place] = kept
                grads[key][place] = (losses[0] - losses[1]) / (2 * h)
        return grads

    def load_params(self, params):
        """Gives the layers other arrays, by assignment."""
        self.params.update(params)
        for number, layer in enumerate(self.trained, 1):
            layer.W, layer.b = self.params[f"W{number}"], self.params[f"b{number}"]
