"""How much each unit of a program matters."""

from compiler.passes.prune.importance.activation import Activation as Activation
from compiler.passes.prune.importance.activation import activation as activation
from compiler.passes.prune.importance.geometric_median import (
    GeometricMedian as GeometricMedian,
)
from compiler.passes.prune.importance.geometric_median import (
    geometric_median as geometric_median,
)
from compiler.passes.prune.importance.gradients import Fisher as Fisher
from compiler.passes.prune.importance.gradients import Taylor as Taylor
from compiler.passes.prune.importance.gradients import fisher as fisher
from compiler.passes.prune.importance.gradients import taylor as taylor
from compiler.passes.prune.importance.importance import Importance as Importance
from compiler.passes.prune.importance.magnitude import BatchNormScale as BatchNormScale
from compiler.passes.prune.importance.magnitude import Magnitude as Magnitude
from compiler.passes.prune.importance.magnitude import Random as Random
from compiler.passes.prune.importance.magnitude import (
    batch_norm_scale as batch_norm_scale,
)
from compiler.passes.prune.importance.magnitude import l1 as l1
from compiler.passes.prune.importance.magnitude import l2 as l2
from compiler.passes.prune.importance.magnitude import random as random
