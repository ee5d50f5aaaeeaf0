"""The look of every picture of a run: colours, sizes and fonts are decided here alone.

Figures are objects of their own (no pyplot): nothing is shared between threads and no display is
needed. A file appears whole or not at all.
"""

from __future__ import annotations

import io
import re
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .run import write_atomic

BLUE, ORANGE, RED, GREY, PALE = "#2364aa", "#e07a1f", "#c0392b", "#6b7280", "#d6dbe1"
_DOTS_PER_INCH = 130
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelcolor": "#374151",
    "axes.edgecolor": "#9aa3ad",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ed",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def shorten(text: Any, length: int) -> str:
    """One line of at most so many characters."""
    text = " ".join(str(text).split())
    return _plain(text if len(text) <= length else text[: length - 1] + "…")


def wrap(text: Any, length: int) -> str:
    """Lines of at most so many characters, which end after a comma or a bar where they can, else
    after a blank; a longer word is divided."""
    lines = [""]
    for part in re.findall(r"[^,|]*[,|]+ ?|[^,|]+", " ".join(str(text).split())):
        if lines[-1] and len(lines[-1] + part.rstrip()) > length:
            lines.append("")
        lines[-1] += part
    return _plain("\n".join(textwrap.fill(line, length) for line in lines))


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib reads mathematics between two of them


def new_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, with its own canvas and no global state."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path | str) -> None:
    """Writes the figure as a PNG, the same bytes for the same figure."""
    blob = io.BytesIO()
    # Not savefig, which draws everything twice: the first time only to lay it out.
    figure.canvas.print_png(blob, metadata={"Software": None})
    write_atomic(Path(path), blob.getvalue())
