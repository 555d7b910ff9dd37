"""The files that describe a model: Triton's config and ONNX graphs."""
