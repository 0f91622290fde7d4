"""From PyTensor graphs to compiled functions, and the fused optimisation loop."""
