"""Every test process is quiet and takes one TensorFlow thread: two of them share two cores."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


def pytest_collection_modifyitems(items):
    """The README's commands take minutes: they come first, so that no process waits for them."""
    items.sort(key=lambda item: "test_readme" not in item.nodeid)
