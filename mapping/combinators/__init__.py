"""The algebra: mappings made of mappings."""

from mapping.combinators.lift import Lift as Lift
from mapping.combinators.lift import as_mapping as as_mapping
from mapping.combinators.serial import Serial as Serial
