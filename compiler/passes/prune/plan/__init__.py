"""A pruning as data, and what it is carried out on: whole training states."""

from compiler.passes.prune.plan.plan import Plan as Plan
from compiler.passes.prune.plan.state import cut as cut
from compiler.passes.prune.plan.state import scatter as scatter
