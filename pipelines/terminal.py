"""What the command line has of the terminal: consoles, JSON, and a start without noise."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
from typing import Any

from rich.console import Console


def load_tensorflow() -> None:
    """Imports TensorFlow without the lines that its C++ side writes while it starts."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:  # then what it wrote may tell why
            sink.seek(0)
            os.write(saved, sink.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


_interrupted = False


def heed_interrupts() -> None:
    """SIGINT (unless it is ignored) and SIGTERM raise KeyboardInterrupt, and are remembered.

    Python drops an exception that is raised while it runs ``__del__`` or a weak reference's
    callback, so one signal in many would have no effect: see :func:`raise_if_interrupted`.
    """
    global _interrupted
    _interrupted = False
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum, frame):
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def raise_if_interrupted() -> None:
    """Raises KeyboardInterrupt if a signal asked for it; for long loops to call at each step."""
    if _interrupted:
        raise KeyboardInterrupt


def log_to(console: Console) -> None:
    """Shows what the library reports (where it trains, what it skipped) as plain lines."""

    class Handler(logging.Handler):
        def emit(self, record):
            console.print(record.getMessage(), highlight=False, soft_wrap=True)

    logger = logging.getLogger("epochal")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logging.getLogger("tensorflow").addFilter(_is_no_retracing)


def _is_no_retracing(record: logging.LogRecord) -> bool:
    """False for TensorFlow's advice about retracing: it takes the graphs of several models, which
    one command trains and measures, for ever new ones of one function."""
    return "tf.function retracing" not in record.getMessage()


def print_json(content: Any, indent: int | None = 2) -> None:
    """On standard output; Unicode as it is."""
    sys.stdout.write(json.dumps(content, indent=indent, ensure_ascii=False, default=str) + "\n")


class _Terminal(Console):
    def on_broken_pipe(self):  # rich would end with exit code 1
        raise


def new_console(stderr: bool = False) -> Console:
    """Where results are printed: square brackets are no markup."""
    return _Terminal(stderr=stderr, markup=False)


def say(text: str) -> None:
    """A message on standard error."""
    Console(stderr=True).print(text, highlight=False, soft_wrap=True, markup=False)
