"""(conv - relu - conv - relu - pool) x 2 - affine - relu - dropout - affine - dropout: as the book's chapter 8 does."""

import numpy as np
from common.layers import Affine, Convolution, Dropout, Pooling, Relu, SoftmaxWithLoss


class DeepNet:
    """Layers in a list; Dropout is told by an argument of ``forward`` whether it trains."""

    def __init__(self, filters=(4, 4, 8, 8), hidden=24, classes=3, seed=0):
        rng = np.random.default_rng(seed)
        self.params, self.layers, self.trained, channels = {}, [], [], 1
        for number, count in enumerate(filters, 1):
            W = np.sqrt(2.0 / (9 * channels)) * rng.standard_normal((count, channels, 3, 3))
            self._add(Convolution(W, np.zeros(count), stride=1, pad=2 if number == 3 else 1))
            self.layers.append(Relu())
            if number % 2 == 0:
                self.layers.append(Pooling(pool_h=2, pool_w=2, stride=2))
            channels = count
        flat = channels * 4 * 4  # 12 -> pool 6 -> pad 8 -> pool 4
        self._add(Affine(np.sqrt(2.0 / flat) * rng.standard_normal((flat, hidden)), np.zeros(hidden)))
        self.layers += [Relu(), Dropout(0.5)]
        self._add(Affine(np.sqrt(2.0 / hidden) * rng.standard_normal((hidden, classes)), np.zeros(classes)))
        self.layers.append(Dropout(0.5))
        self.last_layer = SoftmaxWithLoss()

    def _add(self, layer):
        self.layers.append(layer)
        self.trained.append(layer)
        number = len(self.trained)
        self.params[f"W{number}"], self.params[f"b{number}"] = layer.W, layer.b

    def predict(self, x, train_flg=False):
        for layer in self.layers:
            x = layer.forward(x, train_flg) if isinstance(layer, Dropout) else layer.forward(x)
        return x

    def loss(self, x, t):
        return self.last_layer.forward(self.predict(x, train_flg=True), t)

    def accuracy(self, x, t):
        return np.mean(self.predict(x).argmax(axis=1) == t)

    def gradient(self, x, t):
        self.loss(x, t)
        dout = self.last_layer.backward(1)
        for layer in self.layers[::-1]:
            dout = layer.backward(dout)
        grads = {}
        for number, layer in enumerate(self.trained, 1):
            grads[f"W{number}"], grads[f"b{number}"] = layer.dW, layer.db
        return grads

    def load_params(self, params):
        self.params.update(params)
        for number, layer in enumerate(self.trained, 1):
            layer.W, layer.b = self.params[f"W{number}"], self.params[f"b{number}"]
