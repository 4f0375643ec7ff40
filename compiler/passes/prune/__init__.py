"""Pruning: structure that really disappears, and weights that become zero.

>>> import jax.numpy as jnp, compiler as mc
>>> def mlp(params, x):
...     return jnp.tanh(x @ params["first"]) @ params["second"]
>>> params = {"first": jnp.ones((3, 8)), "second": jnp.ones((8, 2))}
>>> len(groups(mc.trace(mlp, params, jnp.ones((1, 3)))))
1
"""

from compiler.passes.prune.ask import Groups as Groups
from compiler.passes.prune.ask import WhyNot as WhyNot
from compiler.passes.prune.ask import groups as groups
from compiler.passes.prune.ask import why_not as why_not
from compiler.passes.prune.plan import Plan as Plan
from compiler.passes.prune.remove import Remove as Remove
from compiler.passes.prune.remove import apply as apply
