"""SimCLR: an encoder learns from images without labels, by telling which views belong together.

Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of visual
representations (2020). Contrastive learning was not new. New was how little it needs: no memory
bank and no special network, but (a) two random views of each image, of which cropping and colour
distortion matter together (section 3), (b) a non-linear projection head between the
representation and the loss, thrown away afterwards: the layer before it is the better
representation (section 4.2), and (c) large batches, long training, and a loss with a temperature
(section 5). Linear classifiers on such representations came close to supervised networks, and with
1% of the labels well above them.

    h = encoder(view)       what is kept: the embedding, the output of the model
    z = head(h)             what the loss compares, see :mod:`.contrastive`

Heads, for h of width d and projections of width p. All layers are linear without bias, followed by
batch normalisation; the last normalisation has no beta:

| head | layers | trainable weights | d = 2048, p = 128 |
|---|---|---|---|
| nonlinear | d -> d, ReLU, -> p | d^2 + 2d + dp + p | 4,460,672 |
| linear | d -> p | dp + p | 262,272 |
| none | z = h | 0 | 0 |

ResNet-50 without its classifier has 23,508,032 trainable weights.

Deviations from the paper:

1. Section 4.2 writes the head as W2 relu(W1 h); the batch normalisation in it, the start of its
   weights (normal, deviation 0.01) and the missing biases are those of the authors' code, whose
   layers drop their bias where normalisation follows (model_util.py: ``use_bias and not use_bn``).
   A count of 4,462,848 for d = 2048 is this head with a bias in both linear layers, 2048 + 128
   more, which that code does not have. A later default of it, three layers, is ``head_layers=3``.
2. The encoder is any network of the registry that takes images: what enters its last layer is h. On
   CIFAR-10 the paper takes ResNet-50 with a first convolution of 3x3 and stride 1 and no pooling
   (appendix B.9): ``encoder="resnet50", encoder_options={"stem": "small"}``.
3. Batch normalisation uses each replica's own statistics; the paper's are those of all replicas
   (section 2.2).
4. The two views come with the data. How strong they are is said there, in the chain of ops.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from .contrastive import unit
from .layers import FusedBatchNormalization, global_policy, seeds

HEADS = ("nonlinear", "linear", "none")
STARTS = ("weights", "new_head")
"""Options of an encoder that say where its weights come from: a saved model has its own."""
COLLAPSED = 0.01
"""A spread of the projections below this is a collapse."""


@keras.saving.register_keras_serializable("epochal")
class SimCLR(keras.Model):
    """An encoder and its projection head, with the training step of SimCLR.

    Compile it with :class:`.contrastive.NTXent` and train it by ``fit`` on batches of views,
    float32 [n, 2, *input_shape]: the two views of n images. Called on images it gives their
    embeddings. Recorded are

    - ``loss``: NT-Xent, the sum of the two means;
    - ``contrast_accuracy``: how often the view most alike is the partner;
    - ``contrast_entropy``: of what is taken for the partner, in nats; log(2N - 1) at first;
    - ``spread``: sqrt(p) times the mean standard deviation of the normalised projections'
      coordinates in a batch: near 1 where they fill the sphere, 0 where all are alike (Chen and He
      2021, section 4.1).

    Args:
        input_shape: height, width and channels of one image.
        encoder: a model of the registry that takes such images.
        encoder_options: its options, e.g. {"width": 32}. Its ``weights`` and ``new_head`` are not
            among the options that are saved.
        head: "nonlinear", "linear" or "none" (or None); see the module.
        head_layers: layers of a non-linear head, 2 or more.
        projection: p, width of the projections.
        seed: of initial weights; None draws it from what ``keras.utils.set_random_seed`` seeds. It
            is saved, so that the network before training can be built again.
        dtype: policy of all layers; None is Keras's global one. It is saved.

    Attributes:
        encoder: images [n, *input_shape] -> embeddings [n, d].
        head: [n, d] -> projections [n, p]; None without one.
        width: d.

    Raises:
        ValueError: an option out of range, or an encoder that is not one.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        encoder: str = "resnet50",
        encoder_options: dict[str, Any] | None = None,
        head: str | None = "nonlinear",
        head_layers: int = 2,
        projection: int = 128,
        seed: int | None = None,
        name: str = "simclr",
        dtype: Any = None,
        **kwargs,
    ):
        dtype = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        super().__init__(name=name, dtype=dtype, **kwargs)
        head = "none" if head is None else head  # what a command line makes of none
        if head not in HEADS:
            raise ValueError(f"head must be one of {', '.join(HEADS)}; got {head!r}.")
        if head_layers < 2 or projection < 2:
            raise ValueError(
                "A non-linear head has 2 or more layers (head_layers), and projections have 2 or "
                f"more numbers; got head_layers={head_layers!r}, projection={projection!r}."
            )
        encoder_options = dict(encoder_options or {})
        seed = random.randrange(2**31) if seed is None else seed
        self.options = {
            "input_shape": tuple(input_shape),
            "encoder": encoder,
            "encoder_options": {k: v for k, v in encoder_options.items() if k not in STARTS},
            "head": head,
            "head_layers": head_layers,
            "projection": projection,
            "seed": seed,
        }
        with global_policy(dtype):
            self.encoder = build_encoder(encoder, input_shape, seed, **encoder_options)
            self.width = int(self.encoder.output_shape[-1])
            self.head = None
            if head != "none":
                self.head = projection_head(
                    self.width, projection, 1 if head == "linear" else head_layers, seed
                )
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.accuracy_mean = keras.metrics.Mean(name="contrast_accuracy")
        self.entropy_mean = keras.metrics.Mean(name="contrast_entropy")
        self.spread_mean = keras.metrics.Mean(name="spread")
        self.built = True

    def compile(self, optimizer, loss, metrics=(), **kwargs):
        """As Keras's. The loss compares two projections; what is recorded is fixed."""
        if metrics:
            raise ValueError(f"SimCLR records what its docstring lists, no {list(metrics)!r}.")
        self.contrast = loss  # Keras would look for its arguments in the data
        super().compile(optimizer=optimizer, **kwargs)

    def call(self, inputs, training=None):
        """Images [n, *input_shape] -> embeddings float32 [n, d]: of the encoder, without head."""
        return tf.cast(self.encoder(inputs, training=training), tf.float32)

    def project(self, views, training=None) -> tuple[tf.Tensor, tf.Tensor]:
        """Views [n, 2, *input_shape] -> projections of the first and of the second, [n, p] each.

        All 2n views go through the network together, and so through its batch normalisation.
        """
        shape = self.options["input_shape"]
        if views.shape.rank != 2 + len(shape) or views.shape[1] != 2:
            raise ValueError(
                f"SimCLR learns from two views of each image, [n, 2, {', '.join(map(str, shape))}];"
                f" got {views.shape.as_list()}. A recipe makes them by data.task=representation."
            )
        z = self.encoder(tf.reshape(views, [-1, *shape]), training=training)
        z = z if self.head is None else self.head(z, training=training)
        z = tf.reshape(tf.cast(z, tf.float32), [-1, 2, z.shape[-1]])
        return z[:, 0], z[:, 1]

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step on a batch of views; labels that come with them are not looked at."""
        with tf.GradientTape() as tape:
            first, second = self.project(_views(data), training=True)
            loss = self.contrast(first, second)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        return self._record(loss, first, second)

    def test_step(self, data) -> dict[str, tf.Tensor]:
        """The same quantities of views, without learning."""
        first, second = self.project(_views(data), training=False)
        return self._record(self.contrast(first, second), first, second)

    def _record(self, loss, first, second) -> dict[str, tf.Tensor]:
        # Keras has divided it by the number of replicas, so that their gradients add up.
        self.loss_mean.update_state(loss * tf.distribute.get_strategy().num_replicas_in_sync)
        logits, partners = self.contrast.scores(first, second)
        found = tf.argmax(logits, axis=1, output_type=tf.int32) == partners
        self.accuracy_mean.update_state(tf.cast(found, tf.float32))
        log_share = tf.nn.log_softmax(logits)
        entropy = -tf.reduce_sum(tf.exp(log_share) * log_share, axis=1)
        self.entropy_mean.update_state(entropy)
        deviation = tf.math.reduce_std(unit(first), axis=0)
        self.spread_mean.update_state(tf.reduce_mean(deviation) * first.shape[-1] ** 0.5)
        return self.get_metrics_result()

    def trouble(self, logs: dict[str, float]) -> str | None:
        """What an epoch's records say is wrong, in words: that the projections have collapsed."""
        if logs.get("spread", 1.0) < COLLAPSED:
            return f"the projections collapsed, all are alike (spread {logs['spread']:.2g})"
        return None

    # --- Keras --------------------------------------------------------------------------------

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.width)

    def build(self, input_shape=None):
        self.built = True

    def get_config(self):
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {**self.options, "name": self.name, "dtype": dtype}

    @classmethod
    def from_config(cls, config):
        # Older files have no seed. Any will do, but one: loading is to draw nothing.
        return cls(**config | {"seed": config.get("seed") or 0})


def build_encoder(name: str, input_shape: Sequence[int], seed: int | None, **options):
    """A network of the registry up to what enters its last layer, [n, *input_shape] -> [n, d].

    Raises:
        ValueError: an unknown model or option, or a model that does not end in a linear layer on
            features of a whole image.
    """
    from .registry import create_model, get

    if len(input_shape) != 3:
        raise ValueError(f"SimCLR takes images [h, w, c]; got inputs {list(input_shape)}.")
    given = {"input_shape": tuple(input_shape), "num_classes": 2, "seed": seed}
    last = None
    if given.keys() <= inspect.signature(get("model", name)).parameters.keys():
        model = create_model(name, **given, **options)
        last = model.layers[-1] if getattr(model, "inputs", None) else None
    if not isinstance(last, layers.Dense) or len(last.input.shape) != 2:
        raise ValueError(
            f"The model {name!r} is no encoder of images: SimCLR takes one that ends in a linear "
            "layer on features of a whole image, e.g. resnet20, resnet50 or alexnet-2014."
        )
    return keras.Model(model.inputs[0], last.input, name="encoder")


def projection_head(
    width: int, projection: int, head_layers: int, seed: int | None = None
) -> keras.Model:
    """The head as in the authors' code, [n, width] -> [n, projection]; one layer is linear."""
    draw = seeds(None if seed is None else seed + 1)
    inputs = x = keras.Input((width,), name="embedding")
    for i in range(1, head_layers + 1):
        last = i == head_layers
        x = layers.Dense(
            projection if last else width,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=draw()),
            name=f"head_{i}",
        )(x)
        x = FusedBatchNormalization(
            momentum=0.9, epsilon=1e-5, center=not last, name=f"head_norm_{i}"
        )(x)
        x = x if last else layers.ReLU(name=f"head_relu_{i}")(x)
    return keras.Model(inputs, x, name="head")


def _views(data):
    return data[0] if isinstance(data, tuple) else data
