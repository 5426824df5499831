"""Calibration levels: what a few hundred images without labels can set in a quantized network, without training it."""
