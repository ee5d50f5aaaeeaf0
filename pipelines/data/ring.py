"""Eight Gaussians on a ring: the smallest set on which a GAN shows whether it forgets modes.

Radius 2 and standard deviation 0.02, as in Metz et al.: Unrolled generative adversarial networks
(2017), section 3.1. 20,000 points, 2,500 of each Gaussian, whose number is the class; the same
points in every run.
"""

from __future__ import annotations

import numpy as np

from .source import Rows, Source, fingerprint

MODES, RADIUS, DEVIATION, POINTS = 8, 2.0, 0.02, 20_000


def open_ring() -> Source:
    """Features float32 [20000, 2] and the number of the Gaussian, counter-clockwise from (2, 0)."""
    draw = np.random.Generator(np.random.PCG64(2014))
    angles = 2 * np.pi * np.arange(MODES) / MODES
    centres = RADIUS * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    target = np.arange(POINTS) % MODES
    points = centres[target] + DEVIATION * draw.normal(size=(POINTS, 2))
    columns = {"features": points.astype(np.float32)}
    about = {
        "origin": "made by epochal",
        "fingerprint": fingerprint({**columns, "target": target}),
        "examples": POINTS,
        "columns": ["x", "y"],
        "centres": centres.tolist(),
        "deviation": DEVIATION,
    }
    names = tuple(f"mode {i}" for i in range(MODES))
    rows = {"train": Rows(columns, target.astype(np.int64))}
    return Source("features", "classification", names, rows, "mode", about)
