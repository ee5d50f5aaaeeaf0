"""GANs: a ring of Gaussians, digits, clothes.

How good images are is measured by a classifier of the same images, trained first; the report holds
them against those of a Gaussian mixture on the same training images:

    epochal train resnet20-fashion-mnist --run-dir runs/classifier
    epochal evaluate RUN --features runs/classifier
"""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def gan_ring() -> Recipe:
    """Eight Gaussians in the plane: a generator that forgets some of them is seen to.

    One of 2 CPU cores, 40 to 46 s. Over the seeds 0, 1 and 2 8, 8 and 8 of the 8 modes, 94 to 95%
    good samples; D says 0.51 to 0.52 of real points and 0.49 to 0.50 of generated ones.

    The loss is Goodfellow's; the optimizer is Adam, without momentum as in Gulrajani et al. (2017),
    where Radford et al. (2015) halve it and Goodfellow et al. (2014) have SGD. Chosen on the seeds
    10 to 19, all of which cover 8 modes at 2,500 steps and at 10,000. How many of the seeds 10 to
    13 covered 7 or more modes at 5,000 steps:

    - beta_1 0: 4 of 4, 8 modes each;
    - beta_1 0.5: 4 of 4, but 3 to 8 modes at 2,500; over the seeds 0, 1 and 2 it ended with 8, 3
      and 8;
    - beta_1 0.5 and a learning rate of 0.0003: 1 of 4;
    - beta_1 0 and a generator of 0.3 times the rate (generator_rate): 1 of 4.

        epochal train gan-ring
        epochal train gan-ring --loss minimax
    """
    return Recipe(
        name="gan-ring",
        data=Data(
            source="builtin:ring",
            task="generation",
            batch_size=256,
            validation_fraction=0.0,
            test_fraction=0.1,
        ),
        model=Choice(
            name="gan",
            hidden=[128, 128],
            discriminator_hidden=[128, 128],
            pieces=1,
            noise_size=16,
            average=0.99,
        ),
        loss=Choice(name="non-saturating"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.001, beta_1=0.0),
            steps=10_000,
            steps_per_epoch=1_000,
        ),
    )


@recipe
def gan_digits() -> Recipe:
    """Handwritten digits of 8x8 pixels by dense networks.

    One of 2 CPU cores, 2 minutes, seed 0: most samples look like digits (diversity 0.94); D says
    0.51 of real ones and 0.45 of generated ones.

        epochal train gan-digits
    """
    return Recipe(
        name="gan-digits",
        data=Data(
            source="builtin:digits",
            task="generation",
            batch_size=64,
            validation_fraction=0.0,
        ),
        model=Choice(
            name="gan",
            hidden=[256, 256],
            discriminator_hidden=[256, 128],
            pieces=1,
            noise_size=32,
            average=0.999,
        ),
        loss=Choice(name="non-saturating"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.0002, beta_1=0.5),
            steps=20_000,
            steps_per_epoch=2_000,
        ),
    )


@recipe
def dcgan_fashion_mnist() -> Recipe:
    """Clothes of 28x28 pixels by convolutions, with the Adam of Radford et al. 2015, section 4.

    One of 2 CPU cores, 19 minutes, seed 0. By the features of `resnet20-fashion-mnist` a Frechet
    distance of 5.2, where a Gaussian mixture on 64 principal components has 11.0; precision 0.78
    (0.71), recall 0.63 (0.37). The samples look like clothes; some are torn.

        epochal train dcgan-fashion-mnist
    """
    return _clothes(
        "dcgan-fashion-mnist", Choice(name="non-saturating"), steps=10_000, average=0.999
    )


@recipe
def dcgan_cifar10() -> Recipe:
    """Colour photographs of 32x32 pixels, with the widths of the paper.

    For a GPU: not measured; projected: 5 hours on 2 CPU cores.

        epochal train dcgan-cifar10
    """
    return Recipe(
        name="dcgan-cifar10",
        data=Data(
            source="tfds:cifar10",
            ops="flip_lr",
            task="generation",
            batch_size=128,
            validation_fraction=0.0,
        ),
        model=Choice(name="dcgan", average=0.999),
        loss=Choice(name="non-saturating"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.0002, beta_1=0.5),
            steps=20_000,
            steps_per_epoch=1_000,
        ),
    )


@recipe
def cgan_fashion_mnist() -> Recipe:
    """The same, told what to make: `epochal predict RUN 0:Sneaker 0:Bag`.

    2 CPU cores. Not measured; projected: 18 minutes.

        epochal train cgan-fashion-mnist
    """
    return _clothes(
        "cgan-fashion-mnist",
        Choice(name="non-saturating"),
        steps=10_000,
        average=0.999,
        conditional=True,
    )


@recipe
def wgan_gp_fashion_mnist() -> Recipe:
    """The same by the earth mover's distance, with the settings of Gulrajani et al. (2017).

    2 CPU cores. Not measured; projected: 30 minutes.

        epochal train wgan-gp-fashion-mnist
    """
    return _clothes(
        "wgan-gp-fashion-mnist",
        Choice(name="wasserstein-gp"),
        steps=25_000,
        adam={"learning_rate": 0.0001, "beta_1": 0.0, "beta_2": 0.9},
        average=0.995,
        critic_steps=5,
        normalization="layer",
    )


def _clothes(
    name: str, loss: Choice, steps: int, adam: dict[str, float] | None = None, **options
) -> Recipe:
    return Recipe(
        name=name,
        data=Data(
            source="tfds:fashion_mnist", task="generation", batch_size=64, validation_fraction=0.0
        ),
        model=Choice(name="dcgan", filters=64, discriminator_filters=32, **options),
        loss=loss,
        algorithm=Algorithm(
            optimizer=Choice(name="adam", **(adam or {"learning_rate": 0.0002, "beta_1": 0.5})),
            steps=steps,
            steps_per_epoch=1_000,
        ),
    )
