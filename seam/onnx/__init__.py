"""ONNX files of quantized networks, and the proof that they compute what PyTorch does."""
