"""Names of models, losses, optimizers and schedules. Loads neither TensorFlow nor Keras.

The tables are plain so that listing and tab completion are instant; a test holds every row against
the code it names. ``get`` imports the module of a row on first use.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

from .hints import did_you_mean

if typing.TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class ModelEntry:
    """One architecture. ``parameters`` counts trainable weights, for the options in ``example``."""

    module: str
    """Module under ``epochal.models``."""
    symbol: str
    """Function or class in that module; takes keyword arguments and returns a keras.Model."""
    year: int
    paper: str
    """Where it was published: authors, title, section or table."""
    task: str
    """What it is for: "classification", "regression", "forecasting", "language-model",
    "translation", "control", "generation", "representation", "masked-language-model"; several are
    joined by "/"."""
    parameters: int
    """Trainable weights of the model that ``create_model(name, **example)`` builds."""
    summary: str
    """One line for lists."""
    example: dict[str, Any] = field(default_factory=dict)
    """Options of the paper's own setting, used by ``epochal show`` when none are given."""


_MNIST = {"input_shape": (28, 28, 1), "num_classes": 10}
_CIFAR = {"input_shape": (32, 32, 3), "num_classes": 10}
_ATARI = {"input_shape": (84, 84, 4), "num_classes": 4}
_IMAGENET = {"input_shape": (224, 224, 3), "num_classes": 1000}
_HE = "He, Zhang, Ren, Sun: Deep Residual Learning for Image Recognition (2015)"
_ALEXNET = (
    "Krizhevsky, Sutskever, Hinton: ImageNet Classification with Deep Convolutional Neural "
    "Networks (2012)"
)
_BOTH = "classification/regression"


def _residual(kind: str, depth: int, parameters: int) -> ModelEntry:
    small = depth in _CIFAR_COUNTS
    images = "small images, parameter-free shortcuts (A)" if small else "ImageNet"
    words = {
        "resnet": f"residual net for {images}",
        "plain": "the same layers without shortcuts, for comparison",
    }
    return ModelEntry(
        module="resnet_cifar" if small else "resnet",
        symbol=f"{kind}{depth}",
        year=2015,
        paper=f"{_HE}, section 4.2" if small else f"{_HE}, table 1",
        task=_BOTH,
        parameters=parameters,
        summary=f"{depth} layers: {words[kind]}",
        example=_CIFAR if small else _IMAGENET,
    )


_IMAGENET_COUNTS = {
    18: 11_689_512,
    34: 21_797_672,
    50: 25_557_032,
    101: 44_549_160,
    152: 60_192_808,
}
_IMAGENET_PLAIN_COUNTS = {18: 11_515_688, 34: 21_623_848}
_CIFAR_COUNTS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}

_TRANSFORMERS = {"small": 5_658_624, "base": 63_045_632, "big": 214_171_648}


def _transformer(size: str, parameters: int) -> ModelEntry:
    return ModelEntry(
        module="transformer",
        symbol=f"transformer_{size}",
        year=2017,
        paper="Vaswani et al.: Attention is all you need (2017), table 3",
        task="translation",
        parameters=parameters,
        summary=f"encoder and decoder by attention alone, {size}",
        example={"vocabulary_size": 37_000, "length": 64},
    )


_TURC = "Turc, Chang, Lee, Toutanova: Well-read students learn better (2019), table 1"
_DEVLIN = (
    "Devlin, Chang, Lee, Toutanova: BERT: Pre-training of deep bidirectional Transformers for "
    "language understanding (2018), section 3"
)
_TEXTS = "classification/masked-language-model"
_BERTS = {
    "tiny": (2019, _TURC, 4_385_920),
    "mini": (2019, _TURC, 11_170_560),
    "small": (2019, _TURC, 28_763_648),
    "medium": (2019, _TURC, 41_373_184),
    "base": (2018, _DEVLIN, 109_482_240),
    "large": (2018, _DEVLIN, 335_141_888),
}


def _bert(size: str, year: int, paper: str, parameters: int) -> ModelEntry:
    return ModelEntry(
        module="bert",
        symbol=f"bert_{size}",
        year=year,
        paper=paper,
        task=_TEXTS,
        parameters=parameters,
        summary=f"an encoder that learns from gaps in texts, then any task on them, {size}",
        example={"vocabulary_size": 30_522, "length": 128},
    )


_GPT1 = "Radford et al.: Improving language understanding by generative pre-training (2018)"
_GPT2 = "Radford et al.: Language models are unsupervised multitask learners (2019)"
_GPT3 = "Brown et al.: Language models are few-shot learners (2020), table 2.1"
_GPTS = {
    "gpt1": (2018, _GPT1, 40_478, 116_534_784),
    "gpt2-small": (2019, f"{_GPT2}, table 2", 50_257, 124_439_808),
    "gpt2-medium": (2019, f"{_GPT2}, table 2", 50_257, 354_823_168),
    "gpt2-large": (2019, f"{_GPT2}, table 2", 50_257, 774_030_080),
    "gpt2-xl": (2019, f"{_GPT2}, table 2", 50_257, 1_557_611_200),
    "gpt3-125m": (2020, _GPT3, 50_257, 125_226_240),
    "gpt3-350m": (2020, _GPT3, 50_257, 355_871_744),
    "gpt3-760m": (2020, _GPT3, 50_257, 760_300_032),
    "gpt3-1.3b": (2020, _GPT3, 50_257, 1_315_723_264),
    "gpt3-2.7b": (2020, _GPT3, 50_257, 2_651_553_280),
    "gpt3-6.7b": (2020, _GPT3, 50_257, 6_658_404_352),
    "gpt3-13b": (2020, _GPT3, 50_257, 12_853_386_240),
    "gpt3-175b": (2020, _GPT3, 50_257, 174_604_259_328),
}


def _gpt(name: str, year: int, paper: str, vocabulary_size: int, parameters: int) -> ModelEntry:
    family, _, size = name.removeprefix("gpt").partition("-")
    return ModelEntry(
        module="gpt",
        symbol=name.replace("-", "_").replace(".", "_"),
        year=year,
        paper=paper,
        task="language-model",
        parameters=parameters,
        summary=f"tells the next token: GPT-{family} {size}".rstrip(),
        example={"vocabulary_size": vocabulary_size, "length": 512},
    )


_ROWS = {"input_shape": (28, 28), "num_classes": 10}
_SEQUENCES = "classification/regression/forecasting/language-model"

MODELS: dict[str, ModelEntry] = {
    "linear": ModelEntry(
        module="mlp",
        symbol="linear",
        year=1805,
        paper="Legendre: Nouvelles methodes pour la determination des orbites des cometes (1805)",
        task=_BOTH,
        parameters=7_850,
        summary="y = Wx + b: linear or logistic regression, by its loss",
        example=_MNIST,
    ),
    "mlp": ModelEntry(
        module="mlp",
        symbol="mlp",
        year=1986,
        paper="Rumelhart, Hinton, Williams: Learning representations by back-propagating errors "
        "(1986)",
        task=_BOTH,
        parameters=235_146,
        summary="multi-layer perceptron: linear layers with a non-linearity between them",
        example=_MNIST,
    ),
    "knn": ModelEntry(
        module="knn",
        symbol="knn",
        year=1967,
        paper="Cover, Hart: Nearest neighbor pattern classification (1967)",
        task=_BOTH,
        parameters=0,
        summary="exact k nearest neighbours: remembers the training set and lets it vote",
        example={"input_shape": (28, 28, 1), "num_classes": 10, "capacity": 60_000},
    ),
    "alexnet": ModelEntry(
        module="alexnet",
        symbol="alexnet",
        year=2012,
        paper=_ALEXNET,
        task=_BOTH,
        parameters=60_965_224,
        summary="the winner of ImageNet 2012: two towers, ReLU, response normalisation, dropout",
        example=_IMAGENET | {"input_shape": (227, 227, 3)},
    ),
    "alexnet-ungrouped": ModelEntry(
        module="alexnet",
        symbol="alexnet_ungrouped",
        year=2012,
        paper=_ALEXNET,
        task=_BOTH,
        parameters=62_378_344,
        summary="AlexNet's widths in one tower: every filter sees every channel",
        example=_IMAGENET | {"input_shape": (227, 227, 3)},
    ),
    "alexnet-2014": ModelEntry(
        module="alexnet",
        symbol="alexnet_2014",
        year=2014,
        paper="Krizhevsky: One weird trick for parallelizing convolutional neural networks (2014)",
        task=_BOTH,
        parameters=61_100_840,
        summary="AlexNet in one narrower tower, without normalisation, for images from 63 pixels",
        example=_IMAGENET,
    ),
    **{f"resnet{d}": _residual("resnet", d, n) for d, n in _IMAGENET_COUNTS.items()},
    **{f"plain{d}": _residual("plain", d, n) for d, n in _IMAGENET_PLAIN_COUNTS.items()},
    **{f"resnet{d}": _residual("resnet", d, n) for d, n in _CIFAR_COUNTS.items()},
    **{f"plain{d}": _residual("plain", d, n) for d, n in _CIFAR_COUNTS.items()},
    "rnn": ModelEntry(
        module="lstm",
        symbol="rnn",
        year=1990,
        paper="Elman: Finding structure in time (1990)",
        task=_SEQUENCES,
        parameters=21_386,
        summary="plain recurrent network, for comparison",
        example=_ROWS,
    ),
    "gru": ModelEntry(
        module="lstm",
        symbol="gru",
        year=2014,
        paper="Cho et al.: Learning phrase representations using RNN encoder-decoder for "
        "statistical machine translation (2014)",
        task=_SEQUENCES,
        parameters=61_962,
        summary="recurrent network of gated units, for comparison",
        example=_ROWS,
    ),
    "lstm": ModelEntry(
        module="lstm",
        symbol="lstm",
        year=1997,
        paper="Hochreiter, Schmidhuber: Long short-term memory (1997)",
        task=_SEQUENCES,
        parameters=81_674,
        summary="long short-term memory: labels, forecasts and text from sequences",
        example=_ROWS,
    ),
    "seq2seq": ModelEntry(
        module="seq2seq",
        symbol="seq2seq",
        year=2014,
        paper="Sutskever, Vinyals, Le: Sequence to sequence learning with neural networks (2014)",
        task="translation",
        parameters=384_112_000,
        summary="LSTM encoder and decoder, joined by one fixed vector",
        example={"vocabulary_size": 160_000, "target_vocabulary_size": 80_000},
    ),
    "seq2seq-bahdanau": ModelEntry(
        module="seq2seq",
        symbol="seq2seq_bahdanau",
        year=2014,
        paper="Bahdanau, Cho, Bengio: Neural machine translation by jointly learning to align and "
        "translate (2014)",
        task="translation",
        parameters=86_304_000,
        summary="the same with additive attention to a bidirectional encoder",
        example={"vocabulary_size": 30_000},
    ),
    "seq2seq-luong": ModelEntry(
        module="seq2seq",
        symbol="seq2seq_luong",
        year=2015,
        paper="Luong, Pham, Manning: Effective approaches to attention-based neural machine "
        "translation (2015)",
        task="translation",
        parameters=217_082_000,
        summary="the same with multiplicative attention after the decoder's step",
        example={"vocabulary_size": 50_000},
    ),
    **{f"transformer-{size}": _transformer(size, n) for size, n in _TRANSFORMERS.items()},
    **{f"bert-{size}": _bert(size, *row) for size, row in _BERTS.items()},
    "bert": ModelEntry(
        module="bert",
        symbol="BERT",
        year=2018,
        paper=_DEVLIN,
        task=_TEXTS,
        parameters=22_713_216,
        summary="BERT in a size of your own, or that of published weights; here MiniLM's",
        example={"vocabulary_size": 30_522, "width": 384, "layers": 6, "length": 128},
    ),
    **{name: _gpt(name, *row) for name, row in _GPTS.items()},
    "gpt": ModelEntry(
        module="gpt",
        symbol="gpt",
        year=2019,
        paper=_GPT2,
        task="language-model",
        parameters=10_770_816,
        summary="GPT-2's network in a size of your own; as it stands, in nanoGPT's for letters",
        example={"vocabulary_size": 65, "length": 256},
    ),
    "dqn-2013": ModelEntry(
        module="dqn",
        symbol="dqn_2013",
        year=2013,
        paper="Mnih et al.: Playing Atari with deep reinforcement learning (2013)",
        task="control",
        parameters=677_172,
        summary="action values from pixels, learnt by replay of what was done",
        example=_ATARI,
    ),
    "dqn-nature": ModelEntry(
        module="dqn",
        symbol="dqn_nature",
        year=2015,
        paper="Mnih et al.: Human-level control through deep reinforcement learning (2015)",
        task="control",
        parameters=1_686_180,
        summary="the same, larger, with a target network",
        example=_ATARI,
    ),
    "dqn-mlp": ModelEntry(
        module="dqn",
        symbol="dqn_mlp",
        year=2015,
        paper="Mnih et al.: Human-level control through deep reinforcement learning (2015)",
        task="control",
        parameters=10_934,
        summary="the same for observations that are a few numbers",
        example={"input_shape": (4,), "num_classes": 2},
    ),
    "gan": ModelEntry(
        module="gan",
        symbol="gan",
        year=2014,
        paper="Goodfellow et al.: Generative adversarial nets (2014)",
        task="generation",
        parameters=3_735_425,
        summary="a generator and a discriminator that learn from each other, of dense layers",
        example={"input_shape": (28, 28, 1)},
    ),
    "dcgan": ModelEntry(
        module="gan",
        symbol="dcgan",
        year=2015,
        paper="Radford, Metz, Chintala: Unsupervised representation learning with deep "
        "convolutional generative adversarial networks (2015), figure 1",
        task="generation",
        parameters=23_188_868,
        summary="the same of strided convolutions, with batch normalisation",
        example={"input_shape": (64, 64, 3)},
    ),
    "simclr": ModelEntry(
        module="simclr",
        symbol="SimCLR",
        year=2020,
        paper="Chen, Kornblith, Norouzi, Hinton: A simple framework for contrastive learning of "
        "visual representations (2020)",
        task="representation",
        parameters=27_968_704,
        summary="an encoder learns from images without labels, by telling views apart",
        example={"input_shape": (224, 224, 3), "encoder": "resnet50"},
    ),
}

# name -> (module under epochal.models, symbol, one line)
LOSSES: dict[str, tuple[str, str, str]] = {
    "mse": ("losses", "MeanSquaredError", "mean of (y - f)^2: regression"),
    "mae": ("losses", "MeanAbsoluteError", "mean of |y - f|: regression with outliers"),
    "mare": ("losses", "MeanAbsoluteRelativeError", "mean of |y - f| / |y|, defined at y = 0"),
    "huber": ("losses", "Huber", "square near zero, absolute value beyond delta"),
    "log-cosh": ("losses", "LogCosh", "log cosh(y - f): a smooth absolute value"),
    "quantile": ("losses", "Quantile", "pinball loss: learns quantiles of y given x"),
    "cross-entropy": ("losses", "CrossEntropy", "softmax cross-entropy; label smoothing"),
    "binary-cross-entropy": ("losses", "BinaryCrossEntropy", "one logit for two classes"),
    "focal": ("losses", "Focal", "cross-entropy that weighs easy examples down"),
    "zero-one": ("losses", "ZeroOne", "share of wrong classes; for models without gradients"),
    "gaussian": ("losses", "GaussianNLL", "likelihood of a normal distribution, variance learnt"),
    "laplace": ("losses", "LaplaceNLL", "likelihood of a Laplace distribution, scale learnt"),
    "poisson": ("losses", "PoissonNLL", "likelihood of a Poisson distribution: counts"),
    "categorical": ("losses", "CategoricalNLL", "likelihood of classes; equals cross-entropy"),
    "gaussian-mixture": ("losses", "GaussianMixtureNLL", "likelihood of several normals mixed"),
    "minimax": ("gan_losses", "Minimax", "GAN: the game of the paper"),
    "non-saturating": ("gan_losses", "NonSaturating", "GAN: its generator maximises log D"),
    "least-squares": ("gan_losses", "LeastSquares", "GAN: squared distances to 1 and 0"),
    "hinge": ("gan_losses", "Hinge", "GAN: margins of 1"),
    "wasserstein-gp": ("gan_losses", "WassersteinGP", "GAN: earth mover's distance, smooth critic"),
    "nt-xent": ("contrastive", "NTXent", "which two views are of one image: SimCLR"),
}

OPTIMIZERS: dict[str, tuple[str, str, str]] = {
    "sgd": ("optimizers", "SGD", "gradient descent on minibatches"),
    "momentum": ("optimizers", "Momentum", "gradient descent with a velocity (Polyak 1964)"),
    "nesterov": ("optimizers", "Nesterov", "momentum with a look ahead (Nesterov 1983)"),
    "rmsprop": ("optimizers", "RMSprop", "step divided by the running size of the gradient"),
    "adam": ("optimizers", "Adam", "momentum and adaptive steps, bias-corrected (2014)"),
    "adamw": ("optimizers", "AdamW", "Adam with decoupled weight decay (2017)"),
    "radam": ("optimizers", "RAdam", "Adam that waits until its variance is known (2019)"),
    "lars": ("optimizers", "LARS", "a step size for each layer, for large batches (2017)"),
    "lookahead": ("optimizers", "Lookahead", "slow weights that follow fast ones (2019)"),
    "muon": ("optimizers", "Muon", "momentum with steps of one length in all directions (2024)"),
}

SCHEDULES: dict[str, tuple[str, str, str]] = {
    "constant": ("schedules", "Constant", "the peak learning rate throughout"),
    "step": ("schedules", "Step", "multiplied by a factor at given steps"),
    "cosine": ("schedules", "Cosine", "half a cosine from the peak down, after a warm-up"),
    "linear": ("schedules", "Linear", "a straight line from the peak down, after a warm-up"),
    "one-cycle": ("schedules", "OneCycle", "up, then far down, once (Smith 2018)"),
    "inverse-sqrt": ("schedules", "InverseSqrt", "warm-up, then 1 / sqrt(step) (Vaswani 2017)"),
    "plateau": ("callbacks", "ReduceOnPlateau", "cut when validation stops improving"),
}

_TABLES: dict[str, dict[str, Any]] = {
    "models": MODELS,
    "losses": LOSSES,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
}
_SINGULAR = {
    "model": "models",
    "loss": "losses",
    "optimizer": "optimizers",
    "schedule": "schedules",
}


def get(kind: str, name: str) -> Callable[..., Any]:
    """The function or class behind a name; imports its module (and with it TensorFlow).

    Args:
        kind: "model", "loss", "optimizer" or "schedule" (the plural will do).
        name: a row of that kind's table, e.g. "resnet20".

    Raises:
        ValueError: an unknown kind or name; the message gives the nearest known one.
    """
    table = _TABLES.get(_SINGULAR.get(kind, kind))
    if table is None:
        raise ValueError(f"There is no kind {kind!r}; the kinds are {', '.join(_SINGULAR)}.")
    if name not in table:
        raise ValueError(_unknown(_SINGULAR.get(kind, kind), name, table))
    row = table[name]
    module, symbol = (row.module, row.symbol) if isinstance(row, ModelEntry) else row[:2]
    return getattr(import_module(f"{__package__}.{module}"), symbol)


def list_models(pattern: str = "*") -> list[str]:
    """Names that match a shell pattern, e.g. ``list_models("resnet*")``, in the table's order."""
    return [name for name in MODELS if fnmatchcase(name, pattern)]


def create_model(name: str, **options: Any) -> keras.Model:
    """Builds a model by name: ``create_model("mlp", input_shape=(64,), num_classes=10)``.

    Args:
        name: one of :func:`list_models`.
        **options: keyword arguments of the model's function, see :func:`model_card`.

    Returns:
        A built keras.Model. It maps [n, *input_shape] to raw float32 outputs (logits)
        [n, num_classes]; ``knn`` answers vote shares instead, and models that write sequences say
        in their docstrings what they take and answer.

    Raises:
        ValueError: an unknown name or option (the nearest is named), or a missing option.
    """
    build = get("model", name)
    known = inspect.signature(build).parameters
    accepts_more = any(p.kind is p.VAR_KEYWORD for p in known.values())
    for option in options:
        if option not in known and not accepts_more:
            hint = did_you_mean(option, known, 0.5)
            raise ValueError(
                f"The model {name!r} has no option {option!r}.{hint} It takes {', '.join(known)}."
            )
    missing = [
        p.name
        for p in known.values()
        if p.default is p.empty
        and p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        and p.name not in options
    ]
    if missing:
        raise ValueError(
            f"The model {name!r} needs {', '.join(missing)}; "
            f"for example create_model({name!r}, {_as_arguments(MODELS[name].example)})."
        )
    return build(**options)


def model_card(name: str) -> str:
    """What is known about a model, as Markdown: origin, size, options, deviations.

    Imports the model's module, to read its options and its docstring. Raises ValueError for an
    unknown name.
    """
    build = get("model", name)
    entry = MODELS[name]
    options = [
        f"- `{p.name}`" + ("" if p.default is p.empty else f" = `{p.default!r}`")
        for p in inspect.signature(build).parameters.values()
        if p.kind is not p.VAR_KEYWORD
    ]
    module = inspect.getdoc(import_module(f"{__package__}.{entry.module}")) or ""
    return "\n".join(
        [
            f"# {name}",
            "",
            f"{entry.summary[0].upper()}{entry.summary[1:]}.",
            "",
            f"- Paper: {entry.paper}",
            f"- Task: {entry.task.replace('/', ' or ')}",
            f"- Trainable parameters: {entry.parameters:,} with {_as_arguments(entry.example)}",
            f"- Build: `create_model({name!r}, {_as_arguments(entry.example)})`",
            "",
            "## Options",
            "",
            *options,
            "",
            "## About",
            "",
            module,
            "",
        ]
    )


def _as_arguments(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())


def _unknown(kind: str, name: str, table: dict[str, Any]) -> str:
    hint = did_you_mean(str(name), table, 0.5) or f" Known are {', '.join(table)}."
    return f"There is no {name!r} among the {kind}.{hint}"
