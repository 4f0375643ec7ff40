"""The label analysis: which indices of which axes go together, in any function."""

from compiler.passes.prune.structure.groups import Group as Group
from compiler.passes.prune.structure.groups import Slot as Slot
from compiler.passes.prune.structure.registry import RULES as RULES
from compiler.passes.prune.structure.registry import Registry as Registry
from compiler.passes.prune.structure.registry import Rule as Rule
from compiler.passes.prune.structure.structure import Structure as Structure
from compiler.passes.prune.structure.structure import masked as masked
from compiler.passes.prune.structure.structure import shrink as shrink
from compiler.passes.prune.structure.structure import structure as structure
