"""A 10x10 pixel game of the kind of MinAtar's Breakout (Young and Tian 2019), our own code.

Three rows of bricks, a ball that moves by one cell diagonally in each step, and a paddle of one
cell. A brick gives the reward 1; when all are gone they come back. The game is over when the ball
passes the paddle. Deterministic but for where the ball starts, which the seed of the reset decides.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

SIDE = 10
BRICKS = slice(1, 4)  # rows
CHANNELS = ("paddle", "ball", "trail", "brick")
_COLOURS = np.array([[80, 160, 255], [255, 255, 255], [110, 110, 110], [230, 120, 60]], np.uint8)
_SCALE = 16  # pixels a cell in pictures


class PixelBreakout(gymnasium.Env):
    """Observation: uint8 [10, 10, 4], 255 where the paddle, the ball, its last place, a brick is.

    Actions: 0 stay, 1 left, 2 right. The trail shows where the ball comes from, so that one
    observation says all.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        shape = (SIDE, SIDE, len(CHANNELS))
        self.observation_space = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        side = int(self.np_random.integers(2))
        self._paddle = SIDE // 2
        self._ball = self._trail = (BRICKS.stop - 1, side * (SIDE - 1))
        self._motion = (1, 1 - 2 * side)  # down, and to the right or left
        self._bricks = np.zeros((SIDE, SIDE), bool)
        self._bricks[BRICKS] = True
        return self._observe(), {}

    def step(self, action: int):
        self._paddle = min(max(self._paddle + (0, -1, 1)[int(action)], 0), SIDE - 1)
        (row, column), (down, right) = self._ball, self._motion
        reward, over = 0.0, False
        next_row, next_column = row + down, column + right
        if not 0 <= next_column < SIDE:
            next_column, right = column, -right
        if next_row < 0:
            next_row, down = 0, -down
        if self._bricks[next_row, next_column]:
            self._bricks[next_row, next_column] = False
            reward, next_row, down = 1.0, row, -down
        elif next_row == SIDE - 1:
            if not self._bricks.any():
                self._bricks[BRICKS] = True
            if self._paddle == column:  # straight below the ball: on to the other side
                next_row, down = row, -down
            elif self._paddle == next_column:  # met at its edge: back where it came from
                next_row, down, right = row, -down, -right
            else:
                over = True
        self._trail, self._ball = self._ball, (next_row, next_column)
        self._motion = (down, right)
        return self._observe(), reward, over, False, {}

    def _observe(self) -> np.ndarray:
        picture = np.zeros((SIDE, SIDE, len(CHANNELS)), np.uint8)
        picture[SIDE - 1, self._paddle, 0] = 255
        picture[(*self._ball, 1)] = 255
        picture[(*self._trail, 2)] = 255
        picture[..., 3] = 255 * self._bricks
        return picture

    def render(self) -> np.ndarray:
        """uint8 [160, 160, 3]."""
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        cells = self._observe()
        for channel in (3, 2, 0, 1):
            picture[cells[..., channel] > 0] = _COLOURS[channel]
        return picture.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
