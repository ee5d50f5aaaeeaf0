if __name__ != "epochal.models":
    raise ImportError(
        "This folder is the package `epochal.models`, not a top-level module. Install the project "
        "(`pip install -e .` in the checkout) and use `from epochal import models`."
    )
