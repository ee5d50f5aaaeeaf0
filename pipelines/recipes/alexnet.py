"""AlexNet (Krizhevsky et al. 2012): its own setting, and its small form on small images.

All recipes feed pixels from 0 to 255 less their mean, as the paper does; the network's constants
count on that scale (see ``epochal.models.alexnet``).
"""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def alexnet_digits() -> Recipe:
    """AlexNet's small form at an eighth of its widths on scikit-learn's 8x8 digits, enlarged.

    2 CPU cores. Time and test accuracy: not measured.

        epochal train alexnet-digits
    """
    return Recipe(
        name="alexnet-digits",
        data=Data(
            source="builtin:digits",
            ops="resize(16)|random_crop(16, padding=1)|standardize(mean=(78.0,), std=(1.0,))",
            batch_size=32,
        ),
        model=Choice(name="alexnet", width=12),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002),
            schedule=Choice(name="one-cycle"),
            epochs=30,
        ),
    )


@recipe
def alexnet_fashion_mnist() -> Recipe:
    """AlexNet's small form, 15 million multiply-adds an image, on Fashion-MNIST, 12 epochs.

    2 CPU cores with bfloat16 instructions, 12 minutes on one of them. Test accuracy 92.1 ± 0.1%
    (3 seeds). Needs the set in TFDS_DATA_DIR.

        epochal train alexnet-fashion-mnist
    """
    return Recipe(
        name="alexnet-fashion-mnist",
        data=Data(
            source="tfds:fashion_mnist",
            ops="flip_lr|standardize(mean=(73.0,), std=(1.0,))",
            batch_size=128,
        ),
        model=Choice(name="alexnet", width=30),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002),
            schedule=Choice(name="one-cycle"),
            epochs=12,
            precision="mixed_bfloat16",
        ),
    )


@recipe
def alexnet_imagenet() -> Recipe:
    """AlexNet on ImageNet (ILSVRC 2012) with the settings of its paper, section 5.

    Not measured. Projected for 2 CPU cores: 814 hours, were every product of the 90 epochs done at
    the 171 GFLOP/s that matrix products reach in float32 (3 passes x 2 operations x 724,406,816
    multiply-adds x 1,281,167 images x 90 / 171e9). Needs the set, prepared by TensorFlow Datasets,
    in TFDS_DATA_DIR. The published images for validation choose the epoch here, and are the only
    figure: the labels of the test images are not public.

    Differs from the paper, besides what ``epochal.models.alexnet`` lists:

    1. Section 5 puts the decay of 0.0005 into the gradient, so that a momentum of 0.9 multiplies it
       by 10. Here decay acts on the weights alone, with 0.005, and not on biases.
    2. Section 2 subtracts a mean image, here one mean for each channel.
    3. Section 4.1 averages the answers for ten crops; here the middle crop answers.

        epochal train alexnet-imagenet
    """
    return Recipe(
        name="alexnet-imagenet",
        data=Data(
            source="tfds:imagenet2012",
            ops="rgb|resize_shorter(256)|central_crop(256)|random_crop(224)|flip_lr|pca_noise(0.1)"
            "|standardize(mean=(123.675, 116.28, 103.53), std=(1.0, 1.0, 1.0))",
            batch_size=128,
            test_fraction=0.0,
        ),
        model=Choice(name="alexnet"),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="momentum", learning_rate=0.01),
            schedule=Choice(
                name="plateau", monitor="val_accuracy", patience=5, min_learning_rate=1e-5
            ),
            epochs=90,
            weight_decay=0.005,
        ),
    )
