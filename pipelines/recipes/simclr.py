"""SimCLR: representations of images without labels, and what they are worth where labels are few.

A run probes its representation by itself (`epochal evaluate RUN`: nearest neighbours and a linear
classifier on the frozen encoder, beside the encoder before training). The follow-up with few labels
starts a supervised run of the same network from the encoder:

    epochal train simclr-fashion-mnist --run-dir runs/simclr
    epochal train resnet20-fashion-mnist --data.train-examples 600 --model.weights runs/simclr
    epochal train resnet20-fashion-mnist --data.train-examples 600          (to compare with)

Changes that show what the parts are for:

    --model.head linear | none              no non-linear head (Chen et al. 2020, section 4.2)
    --loss.temperature 0.1
    --data.ops '...'                        without cropping, or without colour distortion

On gray images the colour distortion of the paper is one of brightness and contrast.
"""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def simclr_digits() -> Recipe:
    """SimCLR on scikit-learn's 8x8 digits: crops and shades, no mirror images.

    2 CPU cores. Not measured; projected: 1 minute.

        epochal train simclr-digits
    """
    return Recipe(
        name="simclr-digits",
        data=Data(
            source="builtin:digits",
            task="representation",
            ops="random_resized_crop(8, scale=(0.4, 1.0), middle=1.0)"
            "|color_jitter(0.4, 0.4, probability=0.8)|standardize",
            batch_size=128,
        ),
        model=Choice(name="simclr", encoder="resnet20", projection=64),
        loss=Choice(name="nt-xent", temperature=0.5),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002),
            schedule=Choice(name="cosine", warmup_steps=20),
            epochs=40,
        ),
    )


@recipe
def simclr_fashion_mnist() -> Recipe:
    """SimCLR with a ResNet-20 on Fashion-MNIST in 20 epochs.

    2 CPU cores with bfloat16 instructions. Not measured; projected: 40 minutes. Needs the set in
    TFDS_DATA_DIR.

        epochal train simclr-fashion-mnist --run-dir runs/simclr
        epochal train resnet20-fashion-mnist --data.train-examples 600 --model.weights runs/simclr
    """
    return Recipe(
        name="simclr-fashion-mnist",
        data=Data(
            source="tfds:fashion_mnist",
            task="representation",
            ops="random_resized_crop(28, scale=(0.2, 1.0), middle=1.0)|flip_lr"
            "|color_jitter(0.4, 0.4, probability=0.8)|standardize",
            batch_size=256,
            validation_fraction=0.05,
        ),
        model=Choice(name="simclr", encoder="resnet20"),
        loss=Choice(name="nt-xent", temperature=0.5),
        algorithm=_algorithm(epochs=20, warmup_steps=222),
    )


@recipe
def simclr_cifar10() -> Recipe:
    """SimCLR with a ResNet-20 on CIFAR-10 in 20 epochs; the paper: ResNet-50 in 1,000.

    Crops, mirror images and colours as in appendix B.9 of the paper, with strength 0.5 and without
    blur. 2 CPU cores with bfloat16 instructions. Not measured; projected: 45 minutes. Needs the set
    in TFDS_DATA_DIR.

        epochal train simclr-cifar10 --run-dir runs/simclr
        epochal train resnet20-cifar10 --data.train-examples 500 --model.weights runs/simclr
    """
    return Recipe(
        name="simclr-cifar10",
        data=Data(
            source="tfds:cifar10",
            task="representation",
            ops="random_resized_crop(32, middle=1.0)|flip_lr"
            "|color_jitter(0.4, 0.4, 0.4, 0.1, probability=0.8)|random_grayscale(0.2)|standardize",
            batch_size=256,
            validation_fraction=0.05,
        ),
        model=Choice(name="simclr", encoder="resnet20"),
        loss=Choice(name="nt-xent", temperature=0.5),
        algorithm=_algorithm(epochs=20, warmup_steps=185),
    )


def _algorithm(epochs: int, warmup_steps: int) -> Algorithm:
    """LARS and the schedule of the paper, with the authors' rate for CIFAR-10: 1.0 for a batch of
    256, times the batch size / 256 for others; one epoch of warm-up for its ten of a thousand."""
    return Algorithm(
        optimizer=Choice(name="lars", learning_rate=1.0, divisor="norm-of-sum"),
        schedule=Choice(name="cosine", warmup_steps=warmup_steps),
        epochs=epochs,
        weight_decay=1e-4,
        precision="mixed_bfloat16",
    )
