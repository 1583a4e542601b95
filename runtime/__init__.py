"""Whatever executes a model or touches the world: sessions, data, evidence, reports."""

if __name__ != "onnxfold.runtime":
    raise ImportError(
        "import this package as onnxfold.runtime, not as a top-level 'runtime': a second copy "
        "would not recognise the first copy's classes (is the repository root on sys.path?)"
    )
