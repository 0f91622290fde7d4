"""JAX's persistent cache of what has been compiled, beside PyTensor's own."""

import contextlib

from pathlib import Path

import jax
import pytensor

__all__ = ["use_persistent_cache"]

#: Functions that took no longer to compile, in seconds, are not kept.
MIN_SECONDS = 0.1
#: Bytes on disk, beyond which those that were not used for longest give way.
MAX_SIZE = 2**30


def use_persistent_cache() -> None:
    """Let JAX keep what it compiles, as PyTensor does, unless it was told where or not to.

    Nothing is changed if the user has set ``jax_compilation_cache_dir``, or turned the cache off
    by ``jax.config.update("jax_enable_compilation_cache", False)`` or the environment variable
    ``JAX_ENABLE_COMPILATION_CACHE=false``.
    """
    config = jax.config
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return
    folder = Path(pytensor.config.compiledir) / "pymc_emf_jax"
    with contextlib.suppress(OSError):  # a home that cannot be written to: without a cache then
        folder.mkdir(parents=True, exist_ok=True)
        config.update("jax_compilation_cache_dir", str(folder))
        config.update("jax_persistent_cache_min_compile_time_secs", MIN_SECONDS)
        config.update("jax_compilation_cache_max_size", MAX_SIZE)
