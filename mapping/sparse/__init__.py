"""Sparsity: masks by score, schedules, sparse training, lottery tickets.

All are pure functions of trees of arrays; `sparse` makes any optimizer train weights
most of which are zero. `compiler.prune` is for what removes structure from a program.

>>> import jax.numpy as jnp, optax
>>> from mapping.sparse import apply_masks, choose, polynomial, sparse
>>> optimizer = sparse(optax.adam(1e-3), polynomial(0.9, begin=100, end=1000))
>>> params = {"kernel": jnp.array([[0.1, -3.0], [2.0, 0.5]])}
>>> apply_masks(params, choose(params, 0.5))["kernel"].tolist()
[[0.0, -3.0], [2.0, 0.0]]
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mapping.sparse.contest import choose as choose
    from mapping.sparse.distributions import by_path as by_path
    from mapping.sparse.distributions import erk as erk
    from mapping.sparse.distributions import global_ as global_
    from mapping.sparse.distributions import uniform as uniform
    from mapping.sparse.leaves import sparse_leaves as sparse_leaves
    from mapping.sparse.masks import blocks as blocks
    from mapping.sparse.masks import n_of_m as n_of_m
    from mapping.sparse.masks import top_k as top_k
    from mapping.sparse.methods import magnitude as magnitude
    from mapping.sparse.methods import movement as movement
    from mapping.sparse.methods import rigl as rigl
    from mapping.sparse.methods import set_ as set_
    from mapping.sparse.optimizer import Sparse as Sparse
    from mapping.sparse.optimizer import hold as hold
    from mapping.sparse.optimizer import sparse as sparse
    from mapping.sparse.patterns import Block as Block
    from mapping.sparse.patterns import NOfM as NOfM
    from mapping.sparse.patterns import Single as Single
    from mapping.sparse.report import Sparsity as Sparsity
    from mapping.sparse.report import sparsity as sparsity
    from mapping.sparse.schedules import Schedule as Schedule
    from mapping.sparse.schedules import cyclic as cyclic
    from mapping.sparse.schedules import one_shot as one_shot
    from mapping.sparse.schedules import polynomial as polynomial
    from mapping.sparse.search import Trained as Trained
    from mapping.sparse.search import lottery as lottery
    from mapping.sparse.state import SparseState as SparseState
    from mapping.sparse.state import apply_masks as apply_masks
    from mapping.sparse.state import read_masks as read_masks
    from mapping.sparse.ticket import Lottery as Lottery

_HOMES = {
    "contest": ("choose",),
    "distributions": ("by_path", "erk", "global_", "uniform"),
    "leaves": ("sparse_leaves",),
    "masks": ("blocks", "n_of_m", "top_k"),
    "methods": ("magnitude", "movement", "rigl", "set_"),
    "optimizer": ("Sparse", "hold", "sparse"),
    "patterns": ("Block", "NOfM", "Single"),
    "report": ("Sparsity", "sparsity"),
    "schedules": ("Schedule", "cyclic", "one_shot", "polynomial"),
    "search": ("Trained", "lottery"),
    "state": ("SparseState", "apply_masks", "read_masks"),
    "ticket": ("Lottery",),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    """Imports a name when it is first used: masks alone need no optimizer."""
    if name not in _NAMES:
        raise AttributeError(f"module 'mapping.sparse' has no attribute {name!r}")
    home = importlib.import_module(f"mapping.sparse.{_NAMES[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
