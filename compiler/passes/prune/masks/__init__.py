"""Zeros in the weights of any program, which keeps its shapes."""

from compiler.passes.prune.masks.bits import Mask as Mask
from compiler.passes.prune.masks.given import ByMasks as ByMasks
from compiler.passes.prune.masks.given import by_masks as by_masks
from compiler.passes.prune.masks.lot import AtRandom as AtRandom
from compiler.passes.prune.masks.lot import at_random as at_random
from compiler.passes.prune.masks.magnitude import Magnitude as Magnitude
from compiler.passes.prune.masks.magnitude import magnitude as magnitude
from compiler.passes.prune.masks.sparsegpt import SparseGpt as SparseGpt
from compiler.passes.prune.masks.sparsegpt import sparsegpt as sparsegpt
from compiler.passes.prune.masks.sparsity import Sparsity as Sparsity
from compiler.passes.prune.masks.sparsity import masks as masks
from compiler.passes.prune.masks.sparsity import sparsity as sparsity
from compiler.passes.prune.masks.wanda import Wanda as Wanda
from compiler.passes.prune.masks.wanda import wanda as wanda
