"""The algebra: mappings made of mappings."""

from mapping.combinators.capture import Capture as Capture
from mapping.combinators.ensemble import Ensemble as Ensemble
from mapping.combinators.frozen import Frozen as Frozen
from mapping.combinators.lift import Lift as Lift
from mapping.combinators.lift import as_mapping as as_mapping
from mapping.combinators.parallel import Branch as Branch
from mapping.combinators.parallel import Parallel as Parallel
from mapping.combinators.repeat import Repeat as Repeat
from mapping.combinators.residual import Residual as Residual
from mapping.combinators.serial import Serial as Serial
from mapping.combinators.shared import Shared as Shared
from mapping.combinators.shared import Tie as Tie
from mapping.combinators.vmap import Vmap as Vmap
