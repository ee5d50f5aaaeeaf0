"""What a command shows of what others log."""

import logging

from epochal.pipelines.progress import on_terminal


def test_advice_about_retracing_is_left_out_and_other_warnings_are_not():
    shown = []

    class Handler(logging.Handler):
        def emit(self, record):
            shown.append(record.getMessage())

    logger, handler = logging.getLogger("tensorflow"), Handler()
    logger.addHandler(handler)
    try:
        with on_terminal(stderr=True):
            logger.warning("5 of the last %d calls triggered tf.function retracing.", 9)
            logger.warning("Gradients do not exist for %d variables.", 3)
    finally:
        logger.removeHandler(handler)
    assert shown == ["Gradients do not exist for 3 variables."]
