"""Mixed precision: fewer bits where they suffice."""

from compiler.passes.precision.cast import Cast as Cast
from compiler.passes.precision.cast import cast as cast
from compiler.passes.precision.tables import EXACT as EXACT
from compiler.passes.precision.tables import FOLLOW as FOLLOW
from compiler.passes.precision.tables import ISLANDS as ISLANDS
from compiler.passes.precision.tables import LOW as LOW
