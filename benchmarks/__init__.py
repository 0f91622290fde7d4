"""Speed and accuracy, measured side by side: ``python -m benchmarks.core``."""

import os

# The triangular solves of JAX on CPU go through OpenBLAS. Once another library of the process has
# run threads of its own, as PyTensor does, OpenBLAS's threads and those wait for each other: the
# step of a full-rank Gaussian in 30 dimensions takes 24 ms instead of 0.2 ms. One thread is as fast
# as several at these sizes, so all methods get one. It has to be said before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
