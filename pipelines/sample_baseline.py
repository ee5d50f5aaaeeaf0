"""What a generator has to beat: images of a Gaussian mixture on principal components.

The strongest generator that needs no neural network and fits in a minute: the training images are
projected on their first principal components, a mixture of Gaussians with full covariances is
fitted there by EM (as in Richardson and Weiss 2018, arXiv:1805.12462, who do it on all pixels), and
its samples are projected back. scikit-learn does both.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np

log = logging.getLogger(__name__)

DIMENSIONS = 64
COMPONENTS = 20
_EACH = 50  # examples that a Gaussian needs, at least
_STEPS = 100  # of EM


def images(train: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """So many images of the mixture fitted to ``train`` uint8 [n, h, w, c], in the same form.

    Of few training images there are fewer principal components and Gaussians. The images come in
    random order.
    """
    from sklearn.decomposition import PCA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    flat = train.reshape(len(train), -1).astype(np.float32) / 255
    pca = PCA(min(DIMENSIONS, *flat.shape), random_state=seed)
    # In single precision EM ends with covariances that are none.
    inner = pca.fit_transform(flat).astype(np.float64)
    mixture = GaussianMixture(
        max(1, min(COMPONENTS, len(flat) // _EACH)),
        max_iter=_STEPS,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(inner)
    if not mixture.converged_:
        log.info("the baseline's EM took all of its %d steps", _STEPS)
    made, _ = mixture.sample(count)
    made = pca.inverse_transform(made[np.random.default_rng(seed).permutation(count)])
    return np.rint(np.clip(made, 0, 1) * 255).astype(np.uint8).reshape(count, *train.shape[1:])
