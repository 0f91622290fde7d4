"""Variational inference: the approximation, the inference method and its warm start."""
