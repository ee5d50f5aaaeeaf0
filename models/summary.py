"""The table for running a model in one's head: what each layer holds, costs and sees.

``table(model)`` reads a built Keras model and returns plain data; nothing is run.

- *Multiply-adds*: products of a weight and an activation for one example. Only layers that have
  such products count (dense, convolutions, recurrences); what is elementwise (activations,
  normalisation, pooling, sums) is 0, as in the tables of the papers. Layers whose cost is not known
  here are shown as "?" and make the total a lower bound.
- *Activation bytes*: the layer's output for one example in float32. Their sum is about what a
  training step keeps for the backward pass, per example.
- *Receptive field*: side (or height x width) in input pixels of what one output position can see,
  along convolutions and pooling; the widest branch where branches merge. Blank where positions are
  gone (after flattening or global pooling) or never were. Sizes may exceed the image: its border
  then cuts them.

Source of the receptive-field rule: each layer of kernel k, stride s and dilation d turns a field r
with step j into ``r + (k - 1) d j`` with step ``j s``, from r = j = 1 at the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import keras
from keras import layers

_FLOAT_BYTES = 4
Field = tuple[tuple[int, int], ...]  # (field, step) for each spatial axis


@dataclass(frozen=True)
class Row:
    """One layer."""

    name: str
    kind: str
    output_shape: tuple[int | None, ...]
    """Without the batch dimension; None for a size that varies. Of the first output, if several."""
    parameters: int
    """Weights held, moving statistics included; 0 where an earlier row has counted them."""
    trainable: int
    multiply_adds: int | None
    """For one example; None where unknown."""
    activation_bytes: int | None
    """float32, one example; None where a size varies."""
    receptive_field: tuple[int, ...] | None
    """Input positions along each spatial axis; None where undefined."""


@dataclass(frozen=True)
class Summary:
    """A model as rows, one a layer, in the order of computation."""

    name: str
    rows: tuple[Row, ...]

    @property
    def parameters(self) -> int:
        """All weights, moving statistics included."""
        return sum(row.parameters for row in self.rows)

    @property
    def trainable(self) -> int:
        """Weights that training changes."""
        return sum(row.trainable for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        """For one example; a lower bound where :attr:`complete` is False."""
        return sum(row.multiply_adds or 0 for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Outputs of all layers, float32, one example; a lower bound likewise."""
        return sum(row.activation_bytes or 0 for row in self.rows)

    @property
    def complete(self) -> bool:
        """Whether the cost of every layer is known."""
        return all(None not in (row.multiply_adds, row.activation_bytes) for row in self.rows)

    def header(self) -> tuple[str, ...]:
        """Column titles of :meth:`cells`."""
        return (
            "layer",
            "kind",
            "output",
            "parameters",
            "multiply-adds",
            "activation bytes",
            "receptive field",
        )

    def cells(self) -> list[tuple[str, ...]]:
        """The rows as text, the totals last."""
        bound = "" if self.complete else ">= "
        return [_cells(row) for row in self.rows] + [
            (
                "total",
                "",
                "",
                f"{self.parameters:,}",
                f"{bound}{self.multiply_adds:,}",
                f"{bound}{self.activation_bytes:,}",
                "",
            )
        ]

    def to_text(self) -> str:
        """The table in aligned columns, for a terminal of fixed width."""
        lines = [self.header(), *self.cells()]
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rule = "  ".join("-" * width for width in widths)
        text = [
            "  ".join(
                cell.ljust(width) if i < 3 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text[1:1] = [rule]
        text[-1:-1] = [rule]
        frozen = self.parameters - self.trainable
        text.append(f"{self.trainable:,} trainable parameters, {frozen:,} others")
        return f"{self.name}\n" + "\n".join(text) + "\n"


def table(model: keras.Model) -> Summary:
    """The table of a built model, one row for each use of a layer.

    Functional and sequential models are followed along their graph. Of any other model the direct
    layers are listed with what is known without their inputs, and no receptive field. A model
    inside the model is one row, with the sum of its own table as its cost.

    A layer or model of your own can say what this module cannot know: a method
    ``multiply_adds(input_shapes, output_shape) -> int`` for one example, and an attribute
    ``window = (kernel, strides, dilation)``, integers or one for each spatial axis.

    Raises:
        ValueError: the model is not built yet.
    """
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built: give it an Input, call it once, or call "
            "model.build(input_shape)."
        )
    counted: set[int] = set()
    rows = [_row(*step, counted) for step in _walk(model)]
    if any(id(weight) not in counted for weight in model.weights):
        rows.append(_row(model, [], _own_output(model), None, counted, itself=True))
    return Summary(model.name, tuple(rows))


def _walk(model: keras.Model):
    """(layer, input shapes, output shape, field) along the graph; shapes with the batch axis."""
    graph = getattr(model, "_functional", None) or model
    if not hasattr(graph, "_nodes_by_depth"):
        for layer in model.layers:
            yield layer, [], None, None
        return
    fields: dict[int, Field | None] = {}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.outputs[0].dtype == "bool":
                continue  # a mask, which some layers take as an argument
            output = node.outputs[0].shape
            if node.is_input:
                field = ((1, 1),) * (len(output) - 2) or None
            else:
                field = _see(
                    node.operation, [fields.get(id(t)) for t in node.input_tensors], output
                )
            fields |= {id(tensor): field for tensor in node.outputs}
            shapes = [t.shape for t in node.input_tensors if t.dtype != "bool"]
            yield node.operation, shapes, output, field


def _row(
    layer, inputs, output, field: Field | None, counted: set[int], itself: bool = False
) -> Row:
    """A layer's row; ``itself``: the model's own, for weights that are no layer's."""
    weights = [w for w in getattr(layer, "weights", ()) if id(w) not in counted]
    counted |= {id(w) for w in weights}
    trainable = {id(w) for w in getattr(layer, "trainable_weights", ())}
    size = _product(output[1:]) if output is not None else None
    unknown = itself and not hasattr(layer, "multiply_adds")  # its layers have rows of their own
    return Row(
        name=layer.name,
        kind=type(layer).__name__,
        output_shape=tuple(output[1:]) if output is not None else (),
        parameters=sum(math.prod(w.shape) for w in weights),
        trainable=sum(math.prod(w.shape) for w in weights if id(w) in trainable),
        multiply_adds=None if unknown else _multiply_adds(layer, inputs, output),
        activation_bytes=None if size is None else size * _FLOAT_BYTES,
        receptive_field=None if field is None else tuple(seen for seen, _ in field),
    )


def _own_output(model: keras.Model) -> tuple[int | None, ...] | None:
    shape = getattr(model, "output_shape", None)
    return tuple(shape) if isinstance(shape, tuple) and shape and shape[0] is None else None


# --- Cost -------------------------------------------------------------------------------------

# Layers without products of weights and activations.
_FREE = (
    layers.InputLayer,
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Softmax,
    layers.BatchNormalization,
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.UnitNormalization,
    layers.Rescaling,
    layers.Normalization,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.GaussianNoise,
    layers.GaussianDropout,
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    layers.Concatenate,
    layers.Masking,
    layers.Identity,
)
_POOLS = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
)
_PADS = (
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
)
_RESHAPES = (
    layers.Flatten,
    layers.Reshape,
    layers.Permute,
    layers.RepeatVector,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    layers.Embedding,
)
_CONVS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_RECURRENT = (layers.SimpleRNN, layers.LSTM, layers.GRU)


def _multiply_adds(layer, inputs, output) -> int | None:
    if hasattr(layer, "multiply_adds"):
        return layer.multiply_adds(inputs, output)
    if isinstance(layer, keras.Model):
        inner = table(layer)
        return inner.multiply_adds if inner.complete else None
    if isinstance(layer, (*_FREE, *_POOLS, *_PADS, *_RESHAPES)):
        return 0
    if output is None or not inputs:
        return None
    if isinstance(layer, layers.Dense):
        return _product(output[1:-1], math.prod(layer.kernel.shape))
    if isinstance(layer, (*_CONVS, *_TRANSPOSED)):
        # A transposed convolution uses its kernel once at each *input* position.
        shape = inputs[0] if isinstance(layer, _TRANSPOSED) else output
        places = shape[2:] if layer.data_format == "channels_first" else shape[1:-1]
        if isinstance(layer, (layers.SeparableConv1D, layers.SeparableConv2D)):
            kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        else:
            kernels = (layer.kernel,)
        return _product(places, sum(math.prod(kernel.shape) for kernel in kernels))
    if isinstance(layer, layers.Bidirectional):
        both = (layer.forward_layer, layer.backward_layer)
        costs = [_multiply_adds(one, inputs, output) for one in both]
        return None if None in costs else sum(costs)
    if isinstance(layer, _RECURRENT):
        kernels = (layer.cell.kernel, layer.cell.recurrent_kernel)
        return _product(inputs[0][1:2], sum(math.prod(kernel.shape) for kernel in kernels))
    return None


def _product(shape, times: int = 1) -> int | None:
    return None if None in shape else math.prod(shape) * times


# --- Receptive field --------------------------------------------------------------------------


def _see(layer, fields: list[Field | None], output) -> Field | None:
    """The field of a layer's output, from those of its inputs."""
    axes = len(output) - 2
    if isinstance(layer, layers.Embedding):
        return ((1, 1),) * axes or None
    fields = [field for field in fields if field is not None and len(field) == axes]
    if not fields or axes < 1:
        return None
    widest = tuple(max(branch) for branch in zip(*fields, strict=True))
    window = _window(layer)
    if window is None:
        return None
    kernel, strides, dilation = (
        (size,) * axes if isinstance(size, int) else tuple(size) for size in window
    )
    return tuple(
        (seen + (k - 1) * d * step, step * s)
        for (seen, step), k, s, d in zip(widest, kernel, strides, dilation, strict=True)
    )


def _window(layer):
    if hasattr(layer, "window"):
        return layer.window
    if isinstance(layer, _CONVS):
        return layer.kernel_size, layer.strides, layer.dilation_rate
    if isinstance(layer, _POOLS):
        return layer.pool_size, layer.strides, 1
    if isinstance(layer, (*_FREE, *_PADS, layers.Dense)):
        return 1, 1, 1
    return None


# --- Text -------------------------------------------------------------------------------------


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: int | None) -> str:
        return "?" if value is None else f"{value:,}"

    return (
        row.name,
        row.kind,
        " x ".join("?" if size is None else str(size) for size in row.output_shape),
        number(row.parameters),
        number(row.multiply_adds),
        number(row.activation_bytes),
        " x ".join(str(size) for size in row.receptive_field or ()),
    )
