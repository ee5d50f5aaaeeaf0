"""A long short-term memory layer that trains faster than Keras's own, with the same weights.

    z_t = x_t W + h_{t-1} U + b,  cut into i, f, g, o
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
    h_t = sigmoid(o) tanh(c_t)

Hochreiter, Schmidhuber: Long short-term memory (1997); the forget gate f is from Gers, Schmidhuber,
Cummins: Learning to forget (2000). No peepholes.

Only h_{t-1} U has to wait for the step before. Differentiating a loop step by step makes everything
wait: TensorFlow then adds up the gradient of U in the loop, one small product and one sum of the
size of U a step. Here the two loops, forwards and backwards, hold what depends on the step before
and nothing else: the gates, and dL/dz. All the rest (x W, the derivatives of the gates, and the
gradients of x, W, U and b) is done for all steps at once, the gradient of U as a single product of
all h_{t-1} with all dL/dz_t.
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

    @tf.custom_gradient
    def run(x, kernel, recurrent, bias, h0, c0):
        zx = tf.nn.bias_add(tf.matmul(flat(x), kernel), bias)
        zx = tf.reshape(zx, [steps, -1, 4 * units])

        def step(t, h, c, gates, cells, outputs):
            z = tf.cast(zx[t] + tf.matmul(h, recurrent), exact)
            i, f, g, o = tf.split(z, 4, axis=1)
            i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
            new_c = f * c + i * g
            new_h = tf.cast(o * tf.tanh(new_c), dtype)
            if mask is not None:
                new_c, new_h = tf.where(mask[t], new_c, c), tf.where(mask[t], new_h, h)
            gates = gates.write(t, tf.concat([i, f, g, o], axis=1))
            return t + 1, new_h, new_c, gates, cells.write(t, new_c), outputs.write(t, new_h)

        arrays = by_step(4 * units, exact), by_step(units, exact), by_step(units, dtype)
        first = (0, h0, tf.cast(c0, exact), *arrays)
        _, h, c, *arrays = tf.while_loop(lambda t, *_: t < steps, step, first)
        gates, cells, outputs = (array.stack() for array in arrays)

        def gradient(d_outputs, d_h, d_c):
            before_c = tf.concat([tf.cast(c0, exact)[None], cells[:-1]], axis=0)
            before_h = tf.concat([h0[None], outputs[:-1]], axis=0)
            i, f, g, o = tf.split(gates, 4, axis=2)
            tanh_c = tf.tanh(cells)
            # What multiplies dL/dc in dL/dz (three gates), dL/dh in dL/dz (o), dL/dh in dL/dc, and
            # dL/dc in dL/dc of the step before.
            to_z = [g * i * (1 - i), before_c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)]
            to_z, to_c, keep = tf.stack(to_z, axis=2), o * (1 - tanh_c * tanh_c), f
            skip = None
            if mask is not None:  # a masked step hands everything on
                on = tf.cast(mask, exact)
                to_z, to_c, keep, skip = to_z * on[..., None], to_c * on, 1 - on + keep * on, 1 - on
            d_outputs = tf.cast(d_outputs, exact)

            def back(t, d_h, d_c, d_z):
                d_h += d_outputs[t]
                d_c += d_h * to_c[t]
                d = tf.stack([d_c, d_c, d_c, d_h], axis=1) * to_z[t]
                d = tf.cast(tf.reshape(d, [-1, 4 * units]), dtype)
                passed = tf.cast(tf.matmul(d, recurrent, transpose_b=True), exact)
                if skip is not None:
                    passed += d_h * skip[t]
                return t - 1, passed, d_c * keep[t], d_z.write(t, d)

            first = steps - 1, tf.cast(d_h, exact), tf.cast(d_c, exact), by_step(4 * units, dtype)
            _, d_h, d_c, d_z = tf.while_loop(lambda t, *_: t >= 0, back, first)
            d_z = flat(d_z.stack())
            return (
                tf.reshape(tf.matmul(d_z, kernel, transpose_b=True), tf.shape(x)),
                tf.matmul(flat(x), d_z, transpose_a=True),
                tf.matmul(flat(before_h), d_z, transpose_a=True),
                tf.reduce_sum(d_z, axis=0),
                tf.cast(d_h, dtype),
                tf.cast(d_c, dtype),
            )

        return (outputs, h, tf.cast(c, dtype)), gradient

    return run(x, kernel, recurrent, bias, h0, c0)
