"""Six small real tasks, one a kind of loss, each trained by plain onnxruntime."""
