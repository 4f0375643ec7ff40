"""What other libraries made, as mappings; and mappings, as they have them.

>>> from flax import linen
>>> adapt(linen.Dense(3)).kind
'Dense'
"""

import importlib
from typing import TYPE_CHECKING

from mapping.errors import MissingDependencyError
from mapping.interop.adapt import adapt as adapt
from mapping.layers.linen import Linen as Linen

if TYPE_CHECKING:
    from mapping.interop.from_equinox import Equinox as Equinox
    from mapping.interop.from_haiku import Haiku as Haiku
    from mapping.interop.from_nnx import Nnx as Nnx
    from mapping.interop.from_pair import Pair as Pair
    from mapping.interop.into_equinox import to_equinox as to_equinox
    from mapping.interop.into_haiku import to_haiku as to_haiku
    from mapping.interop.into_linen import to_linen as to_linen
    from mapping.interop.into_nnx import to_nnx as to_nnx
    from mapping.interop.into_pair import to_pair as to_pair
    from mapping.interop.weights import load_torch as load_torch
    from mapping.interop.weights import to_torch as to_torch

_HOMES = {
    "Equinox": "from_equinox",
    "Haiku": "from_haiku",
    "Nnx": "from_nnx",
    "Pair": "from_pair",
    "to_equinox": "into_equinox",
    "to_haiku": "into_haiku",
    "to_linen": "into_linen",
    "to_nnx": "into_nnx",
    "load_torch": "weights",
    "to_pair": "into_pair",
    "to_torch": "weights",
}


def __getattr__(name: str) -> object:
    """Imports another library when something of it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mapping.interop' has no attribute {name!r}")
    try:
        home = importlib.import_module(f"mapping.interop.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("equinox", "haiku"):
            raise
        raise MissingDependencyError(
            f"mapping.interop.{name}: expected {error.name} to be installed, found "
            'none. Run: pip install "mapping[interop]"'
        ) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
