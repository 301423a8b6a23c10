"""Losses as pure functions: tensors in, tensors out, each citing its equation."""
