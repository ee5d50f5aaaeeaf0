"""The data slot of a recipe, its largest. See :mod:`.recipe`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .recipe_base import Count, Fraction, Share, Strict


class Replay(Strict):
    """What an agent does, remembers, and learns from. Steps are the agent's, those of all
    environments together; for Atari an agent's step is four of the game's frames."""

    capacity: Count = 50_000
    """Steps that are remembered and learnt from; the oldest go first."""
    start: Count = 1_000
    """Random steps at the beginning, before anything is learnt."""
    train_freq: Count = 4
    """Steps between learning: each training step of the recipe acts so often, with the weights as
    they are, and then learns."""
    updates: Count = 1
    """Minibatches, each an optimizer step, that are learnt from after `train_freq` steps."""
    environments: Count = 1
    """Environments that are played side by side; `train_freq` is a multiple of it."""
    epsilon_start: Share = 1.0
    """How often actions are random when learning begins."""
    epsilon_end: Share = 0.05
    """How often actions are random in the end."""
    epsilon_steps: Count = 10_000
    """Steps over which it goes from the one to the other, on a straight line."""
    discount: Share = 0.99
    """What a reward one step later counts."""
    n_step: Count = 1
    """Steps whose rewards are summed before the value of the state after them is taken."""
    sampling: Literal["uniform", "prioritized", "latest"] = "uniform"
    """Which steps are learnt from: any, those with large errors more often (Schaul et al. 2016), or
    only those taken since the last learning, which is learning without replay."""
    priority_exponent: Share = 0.6
    """prioritized: alpha; 0 is uniform."""
    importance_exponent: Share = 0.4
    """prioritized: beta at the beginning of training; it rises to 1, where weights in the loss make
    up for the priorities."""
    stack: Count = 1
    """Frames of an observation, the newest and those before it."""
    clip_reward: bool = False
    """Learn from the sign of the reward only."""
    life_loss: bool = False
    """Atari: learn as if the game ended with each life."""
    sticky_actions: Fraction = 0.0
    """The chance that an action is replaced by the one before it, so that no sequence of actions
    can be learnt by heart. In evaluation, too."""
    test_epsilon: Share = 0.0
    """How often actions are random in validation and test."""
    validation_episodes: Count = 20
    """Episodes played after each epoch to find the best one."""
    test_episodes: Count = 100
    """Episodes played in the end, from other seeds."""

    @model_validator(mode="after")
    def _fits(self) -> Replay:
        if self.train_freq % self.environments:
            raise ValueError(
                f"train_freq ({self.train_freq}) must be a multiple of environments "
                f"({self.environments})"
            )
        return self


class Masking(Strict):
    """What BERT's pre-training hides, and whether it also asks which text follows which."""

    share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Of an example's tokens so many are hidden: 80% of these as [MASK], 10% as another piece, and
    10% only asked for."""
    whole_words: bool = False
    """Hide all pieces of a word or none."""
    next_sentence: bool = True
    """Ask too whether the second half of an example follows the first, as half of them do. Short
    documents have no two halves: false."""


class Data(Strict):
    """Element 1: what is learnt from."""

    source: str
    """Where the examples come from: builtin:NAME, tfds:NAME[/CONFIG], folder:PATH, images:PATH,
    csv:PATH, series:PATH, text:PATH, pairs:PATH, or `python` for arrays given to `train`; gym:NAME
    is an environment to act in; labels:PATH has names of classes and no examples. `@name` in place
    of a path is a set of the catalogue."""
    ops: str = ""
    """Preprocessing as a chain, e.g. "random_crop(32, padding=4)|flip_lr|standardize". Random ops
    act in training; in evaluation and serving each takes its documented deterministic form."""
    batch_size: Count = 32
    """Examples in an optimizer step."""
    shuffle: bool = True
    """Whether each pass over the training split has an order of its own."""
    validation_fraction: Fraction = 0.1
    """Share of the training examples set apart for validation, where the source has no such
    split."""
    test_fraction: Fraction = 0.2
    """Share of all examples set apart for the test, where the source has no test split."""
    split: Literal["random", "time"] | None = None
    """How the validation and test splits are carved out: at random (in proportion to the classes),
    or by time: the first rows train, later ones validate, the last ones test. By default by time
    for series, else at random. Rows count in the order of the source."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Decides which examples go into which random split; independent of the training seed."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: cut the training examples into so many folds, of which one is the test
    split of a run; the source's own test split is left alone. By class or by group where there are
    such, or, where the split is by time, in order: what comes before a fold trains."""
    fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is the test split, counted from 0. split_seed decides which examples it has."""
    validation_folds: Annotated[int, Field(ge=2)] | None = None
    """Cut what the test leaves into so many folds, of which one is the validation split, in place
    of validation_fraction. Dealt as `folds` are; for sources without a validation split."""
    validation_fold: Annotated[int, Field(ge=0)] = 0
    """The fold that is the validation split, counted from 0."""
    train_examples: Count | None = None
    """Use only so many examples of the training split: in proportion to the classes, or, where the
    split is by time, the latest. Of a series these are windows."""
    train_seed: Annotated[int, Field(ge=0)] | None = None
    """Decides which examples `train_examples` keeps, and nothing else; by default split_seed."""
    train_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """The same as a share: 0.01 is a hundredth of the training split. Validation and test stay
    whole."""
    target: str | None = None
    """csv, text and pairs: the column to predict; by default the last. series: the column to
    forecast, or several with commas between them."""
    group: str | None = None
    """csv: a column of names, of patients or shops say. Rows of one name stay together in one split
    or fold, so that no model is asked about what it has met; the column itself is no input."""
    season: Count | None = None
    """series: steps after which the series repeats itself, more or less; forecasts are measured
    against that repetition. By default a day, week or year, by the step of the time stamps."""
    text: str | None = None
    """text and pairs: the column that is read; by default `text`, else the first one that is not
    the target."""
    task: (
        Literal[
            "classification",
            "regression",
            "language-model",
            "masked-language-model",
            "generation",
            "representation",
        ]
        | None
    ) = None
    """csv, text and arrays: what to predict; by default inferred from the target. language-model:
    the text itself, token by token. masked-language-model: the text itself, what of it is hidden
    (`data.masking`). generation, of images and points: to make more of them; labels
    only count where the model is conditional. representation, of images: nothing; training sees two
    random views of each image, and labels, if there are any, only measure what was learnt."""
    context: Count | None = None
    """Language models: tokens of a training example. Documents are joined, an end token after each,
    and cut into such pieces, elsewhere in every epoch. masked-language-model: the most tokens of an
    example; longer documents are cut into several."""
    masking: Masking | None = None
    """masked-language-model: what is hidden; by default 15% of the tokens, with the question which
    text follows."""
    bucket_batches: Count = 1
    """Sequences of unequal length: in so many batches at a time the examples are sorted by length,
    so that a batch holds little padding. 1: no sorting."""
    standardize_target: bool = False
    """Regression: train on (y - mean) / standard deviation of the training targets. Metrics,
    predictions and exports stay in the target's own units."""
    skip_corrupt: bool = False
    """folder and images: leave out unreadable files and count them, instead of stopping."""
    mixup: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """MixUp: the alpha of Beta(alpha, alpha), from which the share lambda is drawn that an example
    keeps of itself; the rest, of input and target, is another example's of its batch. In training
    only. 0.2 is usual on images, 8 and more against wrong labels."""
    cutmix: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """CutMix, for images: alpha as in mixup, 1 is usual; what an example does not keep is a
    rectangle of another's pixels. With mixup too, each batch draws one of the two."""
    mix_per: Literal["batch", "example"] = "batch"
    """What a lambda of mixup and cutmix is drawn for: a whole batch, as their authors do, or each
    example."""
    shuffle_window: Count = 16_384
    """Streamed sets: examples held in memory for shuffling, after a seeded order of the shards."""
    replay: Replay | None = None
    """gym: how the environment is played, and what of that is learnt from."""
    cache_mib: Annotated[int, Field(ge=0)] = 2_048
    """tfds: a set that decodes to at most so many MiB is held in memory; larger ones stream. Texts
    that are learnt themselves (language models, gaps), of tfds: (each split by itself) and of plain
    files: at most so many MiB are held in memory, and their ids, 4 bytes a token, on top of that;
    larger ones, tokenized once, lie in files under EPOCHAL_CACHE_DIR. Texts of tables and texts
    with labels are in memory, however many."""

    @model_validator(mode="after")
    def _partners(self) -> Data:
        if self.train_fraction is not None and self.train_examples is not None:
            raise ValueError("give train_examples or train_fraction, not both")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"fold {self.fold} is none of folds={self.folds}, counted from 0")
        if self.validation_fold >= (self.validation_folds or 1):
            raise ValueError(
                f"validation_fold {self.validation_fold} is none of "
                f"validation_folds={self.validation_folds}, counted from 0"
            )
        if self.group is not None and (not self.source.startswith("csv:") or self.split == "time"):
            raise ValueError(
                f"group ({self.group!r}) is a column of a csv: table that is split at random; "
                f"source is {self.source!r}"
                + (" and split is 'time'" if self.split == "time" else "")
            )
        if self.batch_size == 1 and (self.mixup is not None or self.cutmix is not None):
            raise ValueError(
                "mixup and cutmix take the other example from the same batch: with a batch_size "
                "of 1 there is none"
            )
        return self
