"""Strictness for every test: no silent promotion. Warnings are errors already.

Documents are tested as their readers run them, without it.
"""

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
    jax.clear_caches()  # thousands of compiled programs would fill the memory
