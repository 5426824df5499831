"""Fake-quantizers, the mixture over bit-widths, and applying a policy to a model."""
