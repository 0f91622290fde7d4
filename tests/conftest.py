"""Settings that must be made before JAX and PyTensor are imported."""

import gc
import os

from pathlib import Path

import pytest

# Compilation is most of the time that the tests take, and they run little of what they compile.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Workers and later runs find what has been compiled; pytest's own folder is not committed.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# What PyTensor evaluates is interpreted, rather than compiled by numba and a C compiler, the inner
# functions of scans included; an interpreter takes fused operations element by element. Tests that
# are about numba name it as their mode. No node remembers where it was made.
os.environ.setdefault(
    "PYTENSOR_FLAGS", "linker=py,cxx=,optimizer_excluding=fusion,traceback__limit=0"
)
# Graphs of millions of objects are searched for garbage a hundred times less often.
gc.set_threshold(200_000, 20, 100)


@pytest.fixture
def compiled_by_numba():
    """Compile as PyTensor does by default: for PyMC's own samplers, which evaluate often."""
    import pytensor

    with pytensor.config.change_flags(linker="numba"):
        yield
