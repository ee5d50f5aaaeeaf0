"""Recurrent networks: forecasts of electricity, and a memory put to the test."""

from __future__ import annotations

from ..recipe import Algorithm, Choice, Data, Recipe
from . import recipe


@recipe
def lstm_electricity() -> Recipe:
    """A day of electricity demand in half-hours, with 90% intervals, from the week before.

    Victoria, 2014; the last fifth of the year tests. Known in advance are the calendar and which
    days are working days; of the temperature the past alone. To beat are the RMSE of "as
    yesterday", 0.473 GW, and "as last week", 0.434 GW. The interval's bounds are moved by what
    validation (20 September to 19 October) says they lack.

    2 CPU cores, 2 minutes on one of them. Test, three seeds: RMSE 0.340, 0.348 and 0.356 GW, 22%,
    20% and 18% below "as last week" for the same windows (0.436); the 90% interval holds 88%, 89%
    and 88% of the truth. Needs EPOCHAL_DATA_DIR.

        epochal train lstm-electricity
    """
    return Recipe(
        name="lstm-electricity",
        data=Data(
            source="series:@electricity-demand",
            ops="calendar('hour', 'weekday')|known('workday')|standardize|window(336, 48)",
            batch_size=64,
        ),
        model=Choice(name="lstm", hidden=[64], dropout=0.1),
        loss=Choice(name="quantile", quantiles=[0.05, 0.5, 0.95]),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.003),
            schedule=Choice(name="cosine"),
            steps=1_000,
            steps_per_epoch=100,
            clip_norm=1.0,
            # A year has one summer, so that what a run makes of a hot day is chance in part. The
            # mean of the weights varies less; on validation, in spring, it makes no difference.
            ema=0.99,
            weight_decay=0.1,
            conformal=True,
        ),
    )


@recipe
def lstm_sunspots() -> Recipe:
    """The sunspots of the next 11 years, with 90% intervals, from the 33 years before.

    1700 to 2008, a number a year; the last fifth, from 1947 on, tests. To beat is the cycle before,
    11 years earlier. 179 windows to learn from: few, and they overlap.

    2 CPU cores: not measured; projected: less than a minute. Needs the extra series.

        epochal train lstm-sunspots
    """
    return Recipe(
        name="lstm-sunspots",
        data=Data(
            source="builtin:sunspots", ops="standardize|window(33, 11)", batch_size=32, season=11
        ),
        model=Choice(name="lstm", hidden=[32]),
        loss=Choice(name="quantile", quantiles=[0.05, 0.5, 0.95]),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.003),
            schedule=Choice(name="cosine"),
            steps=600,
            steps_per_epoch=20,
            clip_norm=1.0,
            conformal=True,
        ),
    )


def _adding(cell: str) -> Recipe:
    return Recipe(
        name=f"{cell}-adding",
        data=Data(source="builtin:adding/150", batch_size=64),
        model=Choice(name=cell, hidden=[64]),
        loss=Choice(name="mse"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.005),
            steps=3_000,
            steps_per_epoch=200,
            clip_norm=1.0,
            jit=True,  # about twice as fast: at every step of time the products are small
        ),
    )


@recipe
def lstm_adding() -> Recipe:
    """The adding problem over 150 steps: two marked numbers, up to 150 steps apart, are summed.

    Always answering 1 has a mean squared error of 0.167 (RMSE 0.408).

    2 CPU cores, 96 s on one of them. Test, one seed: mean squared error 0.0006 (RMSE 0.0243).

        epochal train lstm-adding
    """
    return _adding("lstm")


@recipe
def rnn_adding() -> Recipe:
    """The adding problem for a plain recurrent network: lstm-adding with another cell alone.

    2 CPU cores, 47 s on one of them. Test, one seed: mean squared error 0.158 and R2 0.00:
    as good as always answering the mean.

        epochal train rnn-adding
    """
    return _adding("rnn")


@recipe
def lstm_docstrings() -> Recipe:
    """Which library a paragraph of documentation comes from, by an LSTM that reads both ways.

    2 CPU cores: not measured; projected: a minute, half of it to read and cut the text, which is
    that of the installed libraries: no download.

        epochal train lstm-docstrings
    """
    return Recipe(
        name="lstm-docstrings",
        data=Data(
            source="builtin:docstrings",
            ops="nfkc|lowercase|wordpiece(8000)|max_tokens(64)",
            batch_size=64,
            validation_fraction=0.1,
            test_fraction=0.1,
            bucket_batches=20,
        ),
        model=Choice(name="lstm", hidden=[96], embedding=96, bidirectional=True, dropout=0.3),
        loss=Choice(name="cross-entropy"),
        algorithm=Algorithm(
            optimizer=Choice(name="adam", learning_rate=0.002),
            schedule=Choice(name="one-cycle"),
            epochs=5,
            clip_norm=1.0,
        ),
    )
