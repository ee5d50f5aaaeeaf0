"""Layers whose kernel is divided by its largest singular value (Miyato et al. 2018).

Keras's ``SpectralNormalization`` assigns the divided kernel to the weights themselves, so that the
gradient never sees the division and saved weights are not those that the optimizer moved. Here the
kernel stays what it is, and is divided where it is used, as in the paper's algorithm 1.
"""

from __future__ import annotations

import keras
from keras import ops

_register = keras.saving.register_keras_serializable("epochal")
_EPSILON = 1e-12


class _Spectral:
    """``spectral_kernel(training)``: kernel / sigma, sigma = u' W v by one step of the power
    iteration a training call, from the u of the call before. W is the kernel with all axes but the
    last made one."""

    def build(self, input_shape):
        super().build(input_shape)
        self.u = self.add_weight(
            shape=(self.kernel.shape[-1],),
            initializer=keras.initializers.RandomNormal(seed=self.spectral_seed),
            trainable=False,
            dtype="float32",
            autocast=False,
            name="u",
        )

    def spectral_kernel(self, training):
        kernel = ops.cast(self.kernel, "float32")
        matrix = ops.reshape(kernel, (-1, kernel.shape[-1]))
        fixed = ops.stop_gradient(matrix)
        u = ops.convert_to_tensor(self.u)
        v = _unit(ops.matmul(fixed, u[:, None])[:, 0])
        if training:
            u = _unit(ops.matmul(v[None], fixed)[0])
            self.u.assign(u)
        sigma = ops.sum(ops.matmul(v[None], matrix)[0] * u)
        return ops.cast(kernel / sigma, self.compute_dtype)

    # Dense and Conv2D save the variables they know of; u is one more.

    def save_own_variables(self, store):
        keras.layers.Layer.save_own_variables(self, store)

    def load_own_variables(self, store):
        keras.layers.Layer.load_own_variables(self, store)

    def get_config(self):
        return {**super().get_config(), "spectral_seed": self.spectral_seed}


def _unit(vector):
    return vector / (ops.sqrt(ops.sum(ops.square(vector))) + _EPSILON)


@_register
class SpectralDense(_Spectral, keras.layers.Dense):
    """Dense with a kernel of spectral norm 1; ``spectral_seed`` draws the first u."""

    def __init__(self, units, spectral_seed=None, **kwargs):
        super().__init__(units, **kwargs)
        self.spectral_seed = spectral_seed

    def call(self, inputs, training=False):
        outputs = ops.matmul(inputs, self.spectral_kernel(training))
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)


@_register
class SpectralConv2D(_Spectral, keras.layers.Conv2D):
    """Conv2D with a kernel of spectral norm 1 as a matrix; ``spectral_seed`` draws the first u."""

    def __init__(self, filters, kernel_size, spectral_seed=None, **kwargs):
        super().__init__(filters, kernel_size, **kwargs)
        self.spectral_seed = spectral_seed

    def call(self, inputs, training=False):
        outputs = self.convolution_op(inputs, self.spectral_kernel(training))
        if self.use_bias:
            outputs = outputs + ops.cast(self.bias, outputs.dtype)
        return outputs if self.activation is None else self.activation(outputs)
