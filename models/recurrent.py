"""A long short-term memory layer that trains faster than Keras's own, with the same weights.

    z_t = x_t W + h_{t-1} U + b,  cut into i, f, g, o
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)

Hochreiter, Schmidhuber: Long short-term memory (1997); the forget gate f is from Gers, Schmidhuber,
Cummins: Learning to forget (2000). No peepholes.

Only h_{t-1} U has to wait for the step before. Differentiating a loop step by step makes everything
wait: TensorFlow then adds up the gradient of U in the loop, one small product and one sum of the
size of U a step. Here the two loops, forwards and backwards, hold what depends on the step before:
one product, and the gates of one step, which are still in the cache. The other products (x W, and
the gradients of x, W, U and b) are taken for all steps at once, the gradient of U as a single
product of all h_{t-1} with all dL/dz_t.

Two more things that pay on a CPU. Backwards, U is transposed once and not in every product. And all
four gates come from one tanh, since sigmoid(z) = (tanh(z / 2) + 1) / 2: XLA computes a function of
one argument once, but what is cut in four first, once more for each place where a gate is used.
"""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("epochal")
class LSTM(keras.layers.LSTM):
    """``keras.layers.LSTM``, only faster: same arguments, weights, outputs, masks and gradients.

    Inputs [n, t, f] give [n, units], or [n, t, units] with ``return_sequences``. In bfloat16 and
    float16 products are computed in that dtype, the gates and the cell's state c in float32: c is
    a sum over all steps, which would lose its digits.

    Left to Keras's own code: other activations than tanh and sigmoid, ``unroll``, and in training
    the layer's own ``dropout`` and ``recurrent_dropout``. cuDNN is never used, so that what is
    exported runs on any device; ``use_cudnn`` is no argument here.
    """

    def __init__(self, units: int, **options):
        super().__init__(units, use_cudnn=False, **options)

    def inner_loop(self, sequences, initial_state, mask, training=False):
        cell = self.cell
        fits = (
            cell.activation is keras.activations.tanh
            and cell.recurrent_activation is keras.activations.sigmoid
            and not self.unroll
            and not (training and (cell.dropout or cell.recurrent_dropout))
        )
        if not fits:
            return super().inner_loop(sequences, initial_state, mask, training=training)
        x = tf.transpose(sequences, [1, 0, 2])
        if mask is not None:
            mask = tf.transpose(tf.cast(mask, tf.bool))[..., None]
        if self.go_backwards:
            x = tf.reverse(x, [0])
            mask = None if mask is None else tf.reverse(mask, [0])
        weights = [
            tf.convert_to_tensor(weight, x.dtype)
            for weight in (
                cell.kernel,
                cell.recurrent_kernel,
                cell.bias if cell.use_bias else tf.zeros([4 * self.units], x.dtype),
            )
        ]
        outputs, h, c = _lstm(x, *weights, *initial_state, mask)
        if mask is not None:
            # A masked step repeats the output before it, the first ones have none to repeat.
            seen = mask if self.zero_output_for_mask else tf.cumsum(tf.cast(mask, tf.int32)) > 0
            outputs = tf.where(seen, outputs, tf.zeros([], outputs.dtype))
        return outputs[-1], tf.transpose(outputs, [1, 0, 2]), [h, c]


def _lstm(x, kernel, recurrent, bias, h0, c0, mask):
    """All steps of one layer, time first.

    x [t, n, f], kernel [f, 4u], recurrent [u, 4u], bias [4u], h0 and c0 [n, u], mask bool [t, n, 1]
    or None (where False, h and c stay as they are). Returns h of all steps [t, n, u] and the last
    h and c [n, u].
    """
    dtype = x.dtype
    exact = tf.float32 if dtype.size < 4 else dtype
    steps, units = tf.shape(x)[0], recurrent.shape[0]

    def by_step(width, dtype):
        return tf.TensorArray(dtype, steps, element_shape=[x.shape[1], width])

    def flat(values):
        return tf.reshape(values, [-1, values.shape[-1]])

    def pick(on, values):
        """(values where off, values where on), with zeros elsewhere."""
        zero = tf.zeros([], values.dtype)
        return tf.where(on, zero, values), tf.where(on, values, zero)

    half = tf.repeat(tf.constant([0.5, 0.5, 1.0, 0.5], exact), units)  # of sigmoids; tanh is whole

    @tf.custom_gradient
    def run(x, kernel, recurrent, bias, h0, c0):
        zx = tf.nn.bias_add(tf.matmul(flat(x), kernel), bias)
        zx = tf.reshape(zx, [steps, -1, 4 * units])

        def step(t, h, c, gates, cells, outputs):
            z = tf.cast(zx[t] + tf.matmul(h, recurrent), exact)
            gate = tf.tanh(z * half) * half + (1 - half)
            i, f, g, o = tf.split(gate, 4, axis=1)
            new_c = f * c + i * g
            new_h = tf.cast(o * tf.tanh(new_c), dtype)
            if mask is not None:
                new_c, new_h = tf.where(mask[t], new_c, c), tf.where(mask[t], new_h, h)
            gates = gates.write(t, gate)
            return t + 1, new_h, new_c, gates, cells.write(t, new_c), outputs.write(t, new_h)

        arrays = by_step(4 * units, exact), by_step(units, exact), by_step(units, dtype)
        first = (0, h0, tf.cast(c0, exact), *arrays)
        _, h, c, *arrays = tf.while_loop(lambda t, *_: t < steps, step, first)
        gates, cells, outputs = (array.stack() for array in arrays)

        def gradient(d_outputs, d_h, d_c):
            before_c = tf.concat([tf.cast(c0, exact)[None], cells[:-1]], axis=0)
            before_h = tf.concat([h0[None], outputs[:-1]], axis=0)
            transposed = tf.transpose(recurrent)

            def back(t, d_h, d_c, d_z):
                d_h += tf.cast(d_outputs[t], exact)
                handed_h, handed_c = 0, 0
                if mask is not None:  # a masked step hands everything on, and has no part in it
                    handed_h, d_h = pick(mask[t], d_h)
                    handed_c, d_c = pick(mask[t], d_c)
                i, f, g, o = tf.split(gates[t], 4, axis=1)
                tanh_c = tf.tanh(cells[t])
                d_c += d_h * o * (1 - tanh_c * tanh_c)
                d = [
                    d_c * g * i * (1 - i),
                    d_c * before_c[t] * f * (1 - f),
                    d_c * i * (1 - g * g),
                    d_h * tanh_c * o * (1 - o),
                ]
                d = tf.cast(tf.concat(d, axis=1), dtype)
                passed = tf.cast(tf.matmul(d, transposed), exact)
                return t - 1, passed + handed_h, d_c * f + handed_c, d_z.write(t, d)

            first = steps - 1, tf.cast(d_h, exact), tf.cast(d_c, exact), by_step(4 * units, dtype)
            _, d_h, d_c, d_z = tf.while_loop(lambda t, *_: t >= 0, back, first)
            d_z = flat(d_z.stack())
            return (
                tf.reshape(tf.matmul(d_z, tf.transpose(kernel)), tf.shape(x)),
                tf.matmul(flat(x), d_z, transpose_a=True),
                tf.matmul(flat(before_h), d_z, transpose_a=True),
                tf.reduce_sum(d_z, axis=0),
                tf.cast(d_h, dtype),
                tf.cast(d_c, dtype),
            )

        return (outputs, h, tf.cast(c, dtype)), gradient

    return run(x, kernel, recurrent, bias, h0, c0)
