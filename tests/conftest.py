"""Settings that must be made before JAX is imported."""

import os

# Compilation is most of the time that the tests take, and they run little of what they compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
