"""Generative adversarial networks: one network makes examples, another tells them from real ones.

Goodfellow et al.: Generative adversarial nets (2014). Until then generative models needed a
likelihood, and with it approximate inference or Markov chains. New was to learn by a game: the
discriminator D is a classifier of real against generated, and its gradient with respect to what it
is shown tells the generator G how to be taken for real. At the optimum D is 1/2 everywhere.

    min over G, max over D:   E log D(x) + E log(1 - D(G(z))),   z ~ N(0, 1)

Radford, Metz, Chintala: Unsupervised representation learning with deep convolutional generative
adversarial networks (2015): DCGAN, the convolutional form that trains stably: strided convolutions
for pooling, batch normalisation but at G's output and D's input, ReLU in G, LeakyReLU in D.

| model | layers, for images of height h and width w | trainable: G + D |
|---|---|---|
| `gan` | G: z 100, 1200, 1200 ReLU, hw; D: 2 x 240 maxout of 5 | 28x28x1: 2,503,984 + 1,231,441 |
| `dcgan` | G: z 100, 4x4x1024, 5x5 up to 512, 256, 128, c | 64x64x3: 18,872,323 + 4,316,545 |
| | halved for 32x32x3: 4x4x512, 256, 128 | 32x32x3: 4,935,171 + 1,034,113 |
| | 28x28x1: 7x7x256, 128 | 28x28x1: 2,090,241 + 213,121 |

Options beyond the two papers: ``conditional`` (Mirza and Osindero 2014: both players are told the
class), ``normalization`` of D ("spectral": Miyato et al. 2018), ``critic_steps`` and the losses of
:mod:`.gan_losses` (Wasserstein with gradient penalty: Gulrajani et al. 2017), ``average`` (Karras
et al. 2018: samples come from a running mean of G's weights), ``generator_rate`` (Heusel et al.
2017: two time scales).

Deviations from the papers:

1. Goodfellow's networks start uniform and train with dropout and a limit to the norm of a unit's
   weights in D, and with noise uniform in +-sqrt(3) (their code, mnist.yaml); here they start by
   Glorot's rule, with none of these, and z is normal, also in DCGAN, whose z is uniform in +-1
   (section 4).
2. Goodfellow's G makes pixels of 0..1 by sigmoids (section 5); here all images are spread over
   -1..1 and made by tanh, as DCGAN's are.
3. The table counts biases everywhere, as the paper's figure 1 does not say; layers before a batch
   normalisation do not need theirs.
4. D's widths are 64, 128, 256, 512, of the authors' code; the paper gives G's alone.
5. A training step is one step of D; every ``critic_steps`` steps G makes one too, with new noise.
   Both papers alternate the same way, with ``critic_steps`` 1. D sees the real and the generated
   examples as two batches, each with its own statistics.
6. Samples use moving statistics, not those of a batch: a sample depends on its own noise alone.
7. Mirza and Osindero give the class a hidden layer of its own in each player, whose output meets
   that of z or of x (section 4.1). Here the class is joined one-hot to z and to x themselves, to
   images of the convolutional D as maps of ones and zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from . import gan_losses, gan_networks
from .layers import seeds

BEATEN = 0.01
"""The loss of a discriminator that has won, where it has a least value, 0."""
WARM_UP = 10  # the average starts as a plain mean: it keeps at most (1 + t) / (10 + t) at step t


@keras.saving.register_keras_serializable("epochal")
class GAN(keras.Model):
    """Two players and their training step; train by ``fit`` on x or (x, class ids [n]).

    Compile it with an optimizer and a loss of :mod:`.gan_losses`. The optimizer is the
    discriminator's; the generator gets one like it, whose rate follows. Images are float32 or uint8
    [n, h, w, c] with values 0..255, which are spread over -1..1 here; points float32 [n, f] are
    taken as they are.

    Recorded are ``loss`` of the discriminator, ``generator_loss``, and ``d_real`` and ``d_fake``,
    the mean of D(x) and D(G(z)): probabilities for minimax and non-saturating, else logits.

    Args:
        input_shape: of one example, (h, w, c) or (f,).
        num_classes: what a conditional generator can be asked for.
        convolutional: DCGAN's networks; else dense ones.
        noise_size: length of z.
        conditional: tell both players the class; the data then need labels.
        hidden, discriminator_hidden: widths of dense networks.
        pieces: linear functions of a maxout unit of the dense discriminator; 1: LeakyReLU instead.
        filters: of the generator's last hidden maps; twice as many at half the size, and so on.
        discriminator_filters: of the discriminator's first maps.
        normalization: in the discriminator: "none" (or None), "batch", "layer" or "spectral".
        critic_steps: the discriminator's steps for one of the generator.
        generator_rate: the generator's learning rate, as a multiple of the discriminator's.
        average: momentum of the running mean of the generator's weights that samples come from; 0
            for none.
        seed: of initial weights and noise; None draws from ``keras.utils.set_random_seed``.
        dtype: policy of the model and of both players, e.g. "mixed_bfloat16"; None: the global one.
            It is saved with the model. What players answer is float32 in each.

    Attributes:
        generator, discriminator: the players.
        mean_generator: what samples; the generator itself where ``average`` is 0.
        generator_steps: int64, the generator's steps so far.

    Raises:
        ValueError: an option out of range, or a size that dcgan cannot make.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int = 0,
        convolutional: bool = False,
        noise_size: int = 100,
        conditional: bool = False,
        hidden: Sequence[int] = (1200, 1200),
        discriminator_hidden: Sequence[int] = (240, 240),
        pieces: int = 5,
        filters: int = 128,
        discriminator_filters: int = 64,
        normalization: str | None = "none",
        critic_steps: int = 1,
        generator_rate: float = 1.0,
        average: float = 0.0,
        seed: int | None = None,
        name: str = "gan",
        dtype: Any = None,
        **kwargs,
    ):
        super().__init__(name=name, dtype=dtype, **kwargs)
        self.options = {
            "input_shape": tuple(input_shape),
            "num_classes": num_classes,
            "convolutional": convolutional,
            "noise_size": noise_size,
            "conditional": conditional,
            "hidden": hidden,
            "discriminator_hidden": discriminator_hidden,
            "pieces": pieces,
            "filters": filters,
            "discriminator_filters": discriminator_filters,
            "normalization": "none" if normalization is None else normalization,
            "critic_steps": critic_steps,
            "generator_rate": generator_rate,
            "average": average,
            "seed": seed,
        }
        for key in gan_networks.WIDTHS:
            if isinstance(self.options[key], Sequence):
                self.options[key] = tuple(self.options[key])
        gan_networks.check(self.options)
        draw, built = seeds(seed), self.options | {"dtype": self.dtype_policy}
        self.generator = gan_networks.generator(built, draw, "generator")
        self.discriminator = gan_networks.discriminator(built, draw)
        self.mean_generator = self.generator
        if average:
            self.mean_generator = gan_networks.generator(built, draw, "mean_generator")
            self.mean_generator.trainable = False
            self.mean_generator.set_weights(self.generator.get_weights())
        self.noise_seed = keras.random.SeedGenerator(draw())
        self.generator_steps = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="generator_steps"
        )
        self.generator_optimizer: keras.optimizers.Optimizer | None = None
        self.loss_mean = keras.metrics.Mean(name="loss")
        self.generator_mean = keras.metrics.Mean(name="generator_loss")
        self.real_mean = keras.metrics.Mean(name="d_real")
        self.fake_mean = keras.metrics.Mean(name="d_fake")
        self.built = True

    def compile(self, optimizer, loss, metrics=(), **kwargs):
        """As Keras's, with one of :mod:`.gan_losses`; what is recorded is fixed.

        Raises ValueError for another loss, for metrics, for an optimizer with an average of its own
        and for a gradient penalty with batch normalisation.
        """
        if metrics or not isinstance(loss, gan_losses.GANLoss):
            raise ValueError(
                f"A GAN takes a loss of gan_losses and no metrics; got {loss!r} and {metrics!r}."
            )
        if loss.penalty and self.options["normalization"] == "batch":
            raise ValueError(
                "The gradient penalty is of single examples, and batch normalisation mixes them: "
                'set normalization to "layer", "spectral" or "none".'
            )
        super().compile(optimizer=optimizer, **kwargs)
        if getattr(self.optimizer, "use_ema", False):
            raise ValueError("The optimizer's average is of the discriminator: set average.")
        self.game = loss  # Keras would look for its arguments in the data
        self.generator_optimizer = _like(self.optimizer)
        self.optimizer.build(self.discriminator.trainable_variables)
        self.generator_optimizer.build(self.generator.trainable_variables)

    @property
    def further_state(self) -> list:
        """Variables of training beside the model's and its optimizer's: the other optimizer's."""
        return self.generator_optimizer.variables

    # --- Sampling -----------------------------------------------------------------------------

    def call(self, inputs, training=None):
        """Noise [n, z], or with ``conditional`` [noise, class ids [n]], to samples in the data's
        own values, float32 [n, *input_shape]; images in 0..255, not rounded."""
        if self.options["conditional"]:
            inputs = self._inputs(*map(tf.convert_to_tensor, inputs))
        made = self.mean_generator(inputs, training=False)
        return (made + 1.0) * 127.5 if self._images else made

    def logits(self, x, labels=None):
        """What the discriminator says of examples in the data's own values, float32 [n, 1].

        A discriminator with batch normalisation normalises by these very examples, as in training,
        where real and generated ones are batches of their own: its moving statistics mix the two,
        and with them it is not the function that was trained. So give either real or generated
        examples, as many as a training batch has. Nothing is updated.
        """
        x = self._inputs(self._scaled(x), labels)
        if self.options["normalization"] != "batch":
            return self.discriminator(x, training=False)
        with keras.StatelessScope():  # takes the new moving statistics, and is dropped with them
            return self.discriminator(x, training=True)

    # --- Learning -----------------------------------------------------------------------------

    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step of the discriminator, and every ``critic_steps`` steps one of the generator."""
        x, labels = data if isinstance(data, tuple) else (data, None)
        x = self._scaled(x)
        self._teach_discriminator(x, labels)

        def teach():
            self._teach_generator(tf.shape(x)[0], labels)
            return True

        every = self.options["critic_steps"]
        if every == 1:
            teach()
        else:
            tf.cond(tf.cast(self.optimizer.iterations, tf.int64) % every == 0, teach, lambda: False)
        return self.get_metrics_result()

    def _teach_discriminator(self, x, labels) -> None:
        n = tf.shape(x)[0]
        made = tf.stop_gradient(self.generator(self._inputs(self.noise(n), labels), training=True))
        with tf.GradientTape() as tape:
            real = self.discriminator(self._inputs(x, labels), training=True)
            fake = self.discriminator(self._inputs(made, labels), training=True)
            loss = tf.reduce_mean(self.game.real(real)) + tf.reduce_mean(self.game.fake(fake))
            if self.game.penalty:
                share = keras.random.uniform((n,), dtype="float32", seed=self.noise_seed)

                def critic(between):
                    return self.discriminator(self._inputs(between, labels), training=True)

                slope = gan_losses.gradient_penalty(critic, x, made, share)
                loss += self.game.penalty * slope
            scaled = self.optimizer.scale_loss(loss)
        weights = self.discriminator.trainable_weights
        self.optimizer.apply(tape.gradient(scaled, weights), weights)
        self.loss_mean.update_state(loss)
        self.real_mean.update_state(self.game.score(real))
        self.fake_mean.update_state(self.game.score(fake))

    def _teach_generator(self, n, labels) -> None:
        rate = tf.cast(self.optimizer.learning_rate, tf.float32) * self.options["generator_rate"]
        self.generator_optimizer.learning_rate = rate
        with tf.GradientTape() as tape:
            made = self.generator(self._inputs(self.noise(n), labels), training=True)
            fake = self.discriminator(self._inputs(made, labels), training=True)
            loss = tf.reduce_mean(self.game.generator(fake))
            scaled = self.generator_optimizer.scale_loss(loss)
        weights = self.generator.trainable_weights
        self.generator_optimizer.apply(tape.gradient(scaled, weights), weights)
        self.generator_steps.assign_add(1)
        self.generator_mean.update_state(loss)
        if self.options["average"]:
            steps = tf.cast(self.generator_steps, tf.float32)
            kept = tf.minimum(self.options["average"], (1.0 + steps) / (WARM_UP + steps))
            pairs = zip(self.mean_generator.variables, self.generator.variables, strict=True)
            for mean, now in pairs:
                mean.assign(kept * mean + (1.0 - kept) * now)

    def trouble(self, logs: dict[str, float]) -> str | None:
        """What an epoch's records say is wrong, in words: that the discriminator has won.

        Minimax then leaves the generator without a gradient; the other losses still give it one.
        """
        if self.game.penalty or logs.get("loss", 1.0) >= BEATEN:
            return None
        return f"the discriminator has won: it knows every sample (loss {logs['loss']:.2g})"

    def noise(self, n) -> tf.Tensor:
        """The next n draws of z, [n, noise_size]."""
        shape = (n, self.options["noise_size"])
        return keras.random.normal(shape, dtype="float32", seed=self.noise_seed)

    def _inputs(self, x, labels):
        return [x, tf.cast(labels, tf.int32)] if self.options["conditional"] else x

    @property
    def _images(self) -> bool:
        return len(self.options["input_shape"]) == 3

    def _scaled(self, x):
        x = tf.cast(x, tf.float32)
        return x / 127.5 - 1.0 if self._images else x

    # --- Keras --------------------------------------------------------------------------------

    def compute_output_shape(self, input_shape):
        first = input_shape[0] if self.options["conditional"] else input_shape
        return (first[0], *self.options["input_shape"])

    def build(self, input_shape=None):
        self.built = True

    def get_config(self):
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        return {**self.options, "name": self.name, "dtype": dtype}


def _like(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """An optimizer of the same settings and no state, whose learning rate can be assigned."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return keras.optimizers.LossScaleOptimizer(_like(optimizer.inner_optimizer))
    settings = optimizer.get_config() | {"learning_rate": float(optimizer.learning_rate)}
    return type(optimizer).from_config(settings | {"name": f"generator_{optimizer.name}"})


gan = partial(GAN, name="gan")
dcgan = partial(GAN, convolutional=True, normalization="batch", name="dcgan")
