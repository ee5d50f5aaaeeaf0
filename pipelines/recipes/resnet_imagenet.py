"""ResNets on images of any size: trained on ImageNet, fine-tuned, or taken as they were published.

Published weights come from files of your own (``--model.weights FILE``; `epochal show FILE` says
what a file looks like, :mod:`epochal.models.checkpoints` what is read). They want the preprocessing
that they were trained with:

- ``TORCH``: torchvision and timm. Pixels to 0..1, then by ImageNet's mean and deviation.
- ``CAFFE``: keras.applications' ResNet50, 101 and 152. The mean is taken away from pixels 0..255.
  The order blue, green, red that they were trained with is dealt with on reading the file.
"""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, EarlyStopping, Recipe
from . import recipe

TORCH = "scale|standardize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))"
CAFFE = "standardize(mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0))"


@recipe
def resnet50_imagenet() -> Recipe:
    """ResNet-50 on ImageNet with the settings of the paper (sections 3.4 and 4.1).

    2 CPU cores: not measured; projected 3,800 hours, for 600,000 steps of 256 images at 11 images/s
    in bfloat16. Needs the prepared TFDS set imagenet2012 in TFDS_DATA_DIR. The published images for
    validation choose the epoch here, and are the only figure: the labels of the test images are not
    public.

    Differs from the paper:

    1. The weight decay is decoupled: 1e-3 shrinks the weights as the paper's L2 term of 1e-4 does,
       whose gradient the momentum of 0.9 multiplies by 10. Biases and normalisation do not decay.
    2. A crop is 8 to 100% of the image's area, brought to 224x224, instead of 224x224 of an image
       of random size.
    3. The mean that is subtracted is one a channel, not one a pixel, and there is a division by the
       standard deviation.
    4. The middle crop answers, instead of the mean of ten.

        epochal train resnet50-imagenet
    """
    return Recipe(
        name="resnet50-imagenet",
        data=Data(
            source="tfds:imagenet2012",
            ops=f"rgb|random_resized_crop(224)|flip_lr|pca_noise(0.1)|{TORCH}",
            batch_size=256,
            test_fraction=0.0,
        ),
        model=Choice(name="resnet50"),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="momentum", learning_rate=0.1),
            schedule=Choice(name="plateau", monitor="val_accuracy", patience=5, factor=0.1),
            steps=600_000,
            weight_decay=1e-3,
            precision="mixed_bfloat16",
        ),
    )


@recipe
def resnet50_finetune() -> Recipe:
    """A published ResNet-50 on your own images: a new head, and stages 3 and 4 at a small rate.

    2 CPU cores: not measured. Needs a folder with a folder of images for each class, and weights of
    torchvision or timm (as .safetensors or .npz). `--model.freeze stage4` trains the head alone,
    `--model.freeze none` everything.

        epochal train resnet50-finetune --data.source folder:photos \\
            --model.weights resnet50.safetensors
    """
    return Recipe(
        name="resnet50-finetune",
        data=Data(
            source="folder:photos",
            ops=f"rgb|random_resized_crop(224)|flip_lr|{TORCH}",
            batch_size=32,
        ),
        model=Choice(
            name="resnet50",
            version="v1.5",
            weights="resnet50.safetensors",
            new_head=True,
            freeze="stage2",
        ),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="nesterov", learning_rate=0.003),
            schedule=Choice(name="cosine"),
            epochs=10,
            weight_decay=1e-3,
            clip_norm=1.0,
            precision="mixed_bfloat16",
            early_stopping=EarlyStopping(monitor="val_loss", patience=3),
        ),
    )


def _as_published(name: str, preprocessing: str, **options) -> Recipe:
    return Recipe(
        name=name,
        data=Data(
            source="labels:imagenet_classes.txt",
            ops=f"rgb|resize_shorter(256)|central_crop(224)|{preprocessing}",
        ),
        model=Choice(name="resnet50", **options),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(epochs=0),
    )


@recipe
def resnet50_pretrained() -> Recipe:
    """A published ResNet-50 as it is: a run without training that predicts, exports and serves.

    2 CPU cores: not measured. Needs weights of torchvision or timm (as .safetensors or .npz) and
    the names of their classes, one a line (or `labels:1000` for numbers). With a labelled set in
    place of the names (`--data.source folder:PATH` or `tfds:imagenet2012`, its classes in the order
    of the weights) `epochal evaluate` measures it too.

        epochal train resnet50-pretrained --run-dir runs/resnet50 \\
            --data.source labels:imagenet_classes.txt --model.weights resnet50.safetensors
        epochal predict runs/resnet50 photo.jpg
    """
    return _as_published(
        "resnet50-pretrained", TORCH, version="v1.5", weights="resnet50.safetensors"
    )


@recipe
def resnet50_pretrained_keras() -> Recipe:
    """The same with the weights of keras.applications.ResNet50: version v1, other preprocessing.

    2 CPU cores: not measured. Needs the file that Keras keeps in ~/.keras/models, or what
    `save_weights` wrote, and the names of the classes.

        epochal train resnet50-pretrained-keras --run-dir runs/resnet50 \\
            --data.source labels:imagenet_classes.txt \\
            --model.weights resnet50_weights_tf_dim_ordering_tf_kernels.h5
        epochal predict runs/resnet50 photo.jpg
    """
    return _as_published("resnet50-pretrained-keras", CAFFE, weights="resnet50.weights.h5")
