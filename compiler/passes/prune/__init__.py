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
from compiler.passes.prune.choice.budget import Budget as Budget
from compiler.passes.prune.choice.budget import budget as budget
from compiler.passes.prune.choice.ranking import Ranking as Ranking
from compiler.passes.prune.depth import Block as Block
from compiler.passes.prune.depth import Blocks as Blocks
from compiler.passes.prune.depth import PruneLayers as PruneLayers
from compiler.passes.prune.depth import blocks as blocks
from compiler.passes.prune.depth import carry as carry
from compiler.passes.prune.depth import layers as layers
from compiler.passes.prune.history import History as History
from compiler.passes.prune.history import Round as Round
from compiler.passes.prune.importance import Importance as Importance
from compiler.passes.prune.importance import activation as activation
from compiler.passes.prune.importance import batch_norm_scale as batch_norm_scale
from compiler.passes.prune.importance import fisher as fisher
from compiler.passes.prune.importance import geometric_median as geometric_median
from compiler.passes.prune.importance import l1 as l1
from compiler.passes.prune.importance import l2 as l2
from compiler.passes.prune.importance import random as random
from compiler.passes.prune.importance import taylor as taylor
from compiler.passes.prune.iterate import iterate as iterate
from compiler.passes.prune.masks import AtRandom as AtRandom
from compiler.passes.prune.masks import ByMasks as ByMasks
from compiler.passes.prune.masks import Magnitude as Magnitude
from compiler.passes.prune.masks import Mask as Mask
from compiler.passes.prune.masks import SparseGpt as SparseGpt
from compiler.passes.prune.masks import Sparsity as Sparsity
from compiler.passes.prune.masks import Wanda as Wanda
from compiler.passes.prune.masks import at_random as at_random
from compiler.passes.prune.masks import by_masks as by_masks
from compiler.passes.prune.masks import magnitude as magnitude
from compiler.passes.prune.masks import masks as masks
from compiler.passes.prune.masks import sparsegpt as sparsegpt
from compiler.passes.prune.masks import sparsity as sparsity
from compiler.passes.prune.masks import wanda as wanda
from compiler.passes.prune.plan import Plan as Plan
from compiler.passes.prune.plan.state import cut as cut
from compiler.passes.prune.plan.state import scatter as scatter
from compiler.passes.prune.regularize import regularizer as regularizer
from compiler.passes.prune.remove import Remove as Remove
from compiler.passes.prune.remove import apply as apply
from compiler.passes.prune.structure import RULES as RULES
from compiler.passes.prune.structured import Structured as Structured
from compiler.passes.prune.structured import channels as channels
from compiler.passes.prune.structured import experts as experts
from compiler.passes.prune.structured import heads as heads
from compiler.passes.prune.structured import structured as structured
from compiler.passes.prune.vocabulary import PruneVocabulary as PruneVocabulary
from compiler.passes.prune.vocabulary import Vocabulary as Vocabulary
from compiler.passes.prune.vocabulary import vocabulary as vocabulary
