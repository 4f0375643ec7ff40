"""What each of JAX's primitives means for pruning; imported for what it registers."""

from compiler.passes.prune.structure.rules import control as control
from compiler.passes.prune.structure.rules import derivatives as derivatives
from compiler.passes.prune.structure.rules import elementwise as elementwise
from compiler.passes.prune.structure.rules import lookup as lookup
from compiler.passes.prune.structure.rules import means as means
from compiler.passes.prune.structure.rules import order as order
from compiler.passes.prune.structure.rules import parts as parts
from compiler.passes.prune.structure.rules import products as products
from compiler.passes.prune.structure.rules import reductions as reductions
from compiler.passes.prune.structure.rules import shapes as shapes
