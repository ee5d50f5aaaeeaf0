"""Linear model and multi-layer perceptron, with their gradients derived.

**Linear network.** One example x of f numbers gives c outputs, ``y = W x + b`` with W of c rows and
f columns. How are W and b found? Where the loss L is lowest. Which way should they go?
Differentiate and go the opposite way: ``W <- W - step * dL/dW``. Write d for dL/dy, one number an
output. Since ``y_i = sum_j W_ij x_j + b_i``, only y_i depends on row i of W, and

    dL/dW_ij = d_i x_j    (the outer product d x^T),    dL/db_i = d_i,    dL/dx = W^T d.

- Squared error over c outputs, ``L = (1/c) sum_i (y_i - t_i)^2``: ``d = (2/c) (y - t)``.
- Cross-entropy, ``p = softmax(y)``, ``L = -sum_i t_i log p_i`` with shares t that sum to 1. As
  ``log p_i = y_i - log sum_k exp(y_k)``, the derivative by y_k is ``-t_k + p_k sum_i t_i``, so that
  ``d = p - t``: push the right class up by what it lacks, every other class down by what it has.

For a batch, average L, W's gradient and b's over the examples.

**Two layers: back-propagation.** ``z = W1 x + b1``, ``h = a(z)``, ``y = W2 h + b2``. From the top
down, each line uses the one above it and the rule for dL/dx just derived:

    dL/dW2 = d h^T          dL/db2 = d
    dL/dh  = W2^T d
    e      = dL/dz = dL/dh * a'(z)          (elementwise)
    dL/dW1 = e x^T          dL/db1 = e

with a' = 1 where z > 0 and else 0 (ReLU), s (1 - s) for the sigmoid s, 1 - h^2 for the hyperbolic
tangent. Without a non-linearity a' = 1 everywhere, h = z, and ``y = W2 W1 x + ...`` is a linear
network again, whatever the number of layers: something non-linear has to stand in between.

Sources: Legendre (1805) for least squares; Rumelhart, Hinton, Williams: Learning representations by
back-propagating errors (Nature 323, 1986). Their units are sigmoid; ReLU, dropout (Srivastava 2014)
and batch normalisation (Ioffe, Szegedy 2015, before the non-linearity) are later options.

| name, for 28x28 inputs and 10 outputs | trainable weights |
|---|---|
| linear | 7,850 |
| mlp, hidden (256, 128) | 235,146 |
"""

from collections.abc import Sequence

import keras

from .layers import seeds

ACTIVATIONS = ("relu", "sigmoid", "tanh", "none")


def linear(input_shape: Sequence[int], num_classes: int, name: str = "linear") -> keras.Model:
    """``y = W x + b``: linear regression with a squared loss, logistic with a cross-entropy.

    Args:
        input_shape: shape of one example, of any rank; it is flattened.
        num_classes: number of outputs.
        name: the model's name.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].
    """
    return mlp(input_shape, num_classes, hidden=(), name=name)


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    hidden: Sequence[int] = (256, 128),
    activation: str = "relu",
    dropout: float = 0.0,
    batch_norm: bool = False,
    seed: int | None = None,
    name: str = "mlp",
) -> keras.Model:
    """Multi-layer perceptron: each hidden layer is linear, [normalised,] non-linear[, dropped out].

    Weights start as in He et al. (2015, Delving Deep, eq. 10) for ReLU and as in Glorot, Bengio
    (2010, eq. 16) otherwise, so that activations keep their size through the layers; biases at 0.

    Args:
        input_shape: shape of one example, of any rank; it is flattened.
        num_classes: number of outputs.
        hidden: widths of the hidden layers; empty for a linear model.
        activation: "relu", "sigmoid", "tanh" or "none".
        dropout: share of the hidden activations set to zero in training, in [0, 1).
        batch_norm: normalise before each non-linearity; the layer then needs no bias.
        seed: of initial weights and dropout; None draws them from ``keras.utils.set_random_seed``.
        name: the model's name.

    Returns:
        Model from [n, *input_shape] to raw float32 outputs [n, num_classes].

    Raises:
        ValueError: an option out of range.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}; got {activation!r}.")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is a share in [0, 1); got {dropout!r}.")
    if any(not isinstance(width, int) or width < 1 for width in (*hidden, num_classes)):
        raise ValueError(
            "hidden and num_classes are widths, integers of 1 or more; "
            f"got hidden={tuple(hidden)!r}, num_classes={num_classes!r}."
        )
    draw = seeds(seed)

    inputs = keras.Input(input_shape, name="inputs")
    x = keras.layers.Flatten(name="flatten")(inputs)
    for i, width in enumerate(hidden, start=1):
        x = keras.layers.Dense(
            width,
            use_bias=not batch_norm,
            kernel_initializer=_initializer(activation, draw()),
            name=f"hidden_{i}",
        )(x)
        if batch_norm:
            x = keras.layers.BatchNormalization(name=f"norm_{i}")(x)
        if activation != "none":
            x = keras.layers.Activation(activation, name=f"{activation}_{i}")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, seed=draw(), name=f"dropout_{i}")(x)
    outputs = keras.layers.Dense(
        num_classes,
        kernel_initializer=_initializer("none", draw()),
        dtype="float32",
        name="outputs",
    )(x)
    return keras.Model(inputs, outputs, name=name)


def _initializer(activation: str, seed: int | None) -> keras.initializers.Initializer:
    if activation == "relu":
        return keras.initializers.HeNormal(seed)
    return keras.initializers.GlorotUniform(seed)
