"""Write models as mappings: pure functions described by values.

>>> import jax, mapping as mp
>>> net = mp.layers.Dense(8) >> jax.nn.relu >> mp.layers.Dense(2)
>>> spec = jax.ShapeDtypeStruct((1, 4), "float32")
>>> variables = net.init(jax.random.key(0), spec)
>>> net(variables.params, jax.numpy.ones((3, 4))).shape
(3, 2)
"""

import importlib
from typing import TYPE_CHECKING

from mapping.built import Built as Built
from mapping.combinators import Branch as Branch
from mapping.combinators import Capture as Capture
from mapping.combinators import Ensemble as Ensemble
from mapping.combinators import Frozen as Frozen
from mapping.combinators import Lift as Lift
from mapping.combinators import Parallel as Parallel
from mapping.combinators import Repeat as Repeat
from mapping.combinators import Residual as Residual
from mapping.combinators import Serial as Serial
from mapping.combinators import Shared as Shared
from mapping.combinators import Tie as Tie
from mapping.combinators import Vmap as Vmap
from mapping.config import from_config as from_config
from mapping.config import to_config as to_config
from mapping.core import Context as Context
from mapping.core import Mapping as Mapping
from mapping.core import Variables as Variables
from mapping.core import call as call
from mapping.core import init as init
from mapping.core import leaf_paths as leaf_paths
from mapping.core import outline as outline
from mapping.core import output_spec as output_spec
from mapping.flow import Flow as Flow
from mapping.model import Model as Model
from mapping.param import Param as Param
from mapping.registry import Example as Example
from mapping.registry import build as build
from mapping.registry import register as register
from mapping.tree import diff as diff
from mapping.tree import load as load
from mapping.tree import merge as merge
from mapping.tree import select as select

if TYPE_CHECKING:
    from mapping import augment as augment
    from mapping import data as data
    from mapping import errors as errors
    from mapping import interop as interop
    from mapping import layers as layers
    from mapping import losses as losses
    from mapping import metrics as metrics
    from mapping import models as models
    from mapping import optimizers as optimizers
    from mapping import sparse as sparse
    from mapping import testing as testing
    from mapping import train as train

_SUBMODULES = (
    "augment",
    "data",
    "errors",
    "interop",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "sparse",
    "testing",
    "train",
)


def __getattr__(name: str) -> object:
    """Imports a submodule when it is first used: a server needs no layers."""
    if name in _SUBMODULES:
        return importlib.import_module(f"mapping.{name}")
    raise AttributeError(f"module 'mapping' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
