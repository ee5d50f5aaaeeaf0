if __name__ != "epochal.pipelines":
    raise ImportError(
        "This folder is the package `epochal.pipelines`, not a top-level module. Install the project "
        "(`pip install -e .` in the checkout) and use `from epochal import pipelines`."
    )
