"""Strictness for every test: no silent promotion. Warnings are errors already.

Documents are tested as their readers run them, without it. What one worker or module
has compiled, the others read from a folder that lasts as long as the run.
"""

import os
import tempfile

import jax
import pytest

FOLDER = "JAX_COMPILATION_CACHE_DIR"

if FOLDER not in os.environ:  # workers find it set by the process that starts them
    compiled = tempfile.TemporaryDirectory(
        prefix="compiled-", ignore_cleanup_errors=True
    )
    os.environ[FOLDER] = compiled.name
jax.config.update("jax_compilation_cache_dir", os.environ[FOLDER])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(autouse=True, scope="module")
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
    jax.clear_caches()  # thousands of compiled programs would fill the memory
