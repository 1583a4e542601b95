"""Graph passes: model in, model out. Nothing in here executes a model."""

if __name__ != "onnxfold.passes":
    raise ImportError(
        "import this package as onnxfold.passes, not as a top-level 'passes': a second copy would "
        "not recognise the first copy's classes (is the repository root on sys.path?)"
    )
