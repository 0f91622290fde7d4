"""JAX's persistent cache is on by default, and the user's own settings stay."""

from types import SimpleNamespace

import jax
import pytest

from pymc_emf.engine import cache

NAMES = [
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
]


@pytest.fixture
def config(monkeypatch, tmp_path):
    """JAX's configuration, put back afterwards, and a home for what PyTensor compiles."""
    monkeypatch.setattr(
        cache, "pytensor", SimpleNamespace(config=SimpleNamespace(compiledir=tmp_path / "home"))
    )
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_beside_what_pytensor_compiles(config, tmp_path):
    cache.use_persistent_cache()
    folder = tmp_path / "home" / "pymc_emf_jax"
    assert folder.is_dir()
    assert config.jax_compilation_cache_dir == str(folder)
    assert config.jax_compilation_cache_max_size == cache.MAX_SIZE


def test_the_users_own_folder_stays(config, tmp_path):
    config.update("jax_compilation_cache_dir", "/somewhere")
    cache.use_persistent_cache()
    assert config.jax_compilation_cache_dir == "/somewhere"
    assert not (tmp_path / "home").exists()


def test_turned_off(config, tmp_path):
    config.update("jax_enable_compilation_cache", False)
    cache.use_persistent_cache()
    assert config.jax_compilation_cache_dir is None
    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_written_to(config, tmp_path):
    (tmp_path / "home").write_text("a file, not a folder")
    cache.use_persistent_cache()
    assert config.jax_compilation_cache_dir is None
