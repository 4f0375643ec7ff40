"""The one package that knows what a jaxpr looks like inside.

JAX's own names for the parts of a control-flow equation change between releases;
everything else in the compiler speaks through these names. Only public API is used
(`jax.extend`); `tests/compiler/test_jaxprs.py` guards what is read from params.
"""

from compiler.jaxprs.build import captured_arrays as captured_arrays
from compiler.jaxprs.build import check as check
from compiler.jaxprs.build import constants_to_inputs as constants_to_inputs
from compiler.jaxprs.build import distinct as distinct
from compiler.jaxprs.build import make as make
from compiler.jaxprs.build import part as part
from compiler.jaxprs.build import rebuilt as rebuilt
from compiler.jaxprs.build import with_equations as with_equations
from compiler.jaxprs.calls import Body as Body
from compiler.jaxprs.calls import bodies as bodies
from compiler.jaxprs.calls import has_jaxprs as has_jaxprs
from compiler.jaxprs.calls import is_opaque as is_opaque
from compiler.jaxprs.calls import is_plain_jit as is_plain_jit
from compiler.jaxprs.calls import nested as nested
from compiler.jaxprs.calls import repeats as repeats
from compiler.jaxprs.calls import replace_bodies as replace_bodies
from compiler.jaxprs.calls import scan_counts as scan_counts
from compiler.jaxprs.calls import takes_constants as takes_constants
from compiler.jaxprs.calls import with_params as with_params
from compiler.jaxprs.calls import with_scan_counts as with_scan_counts
from compiler.jaxprs.derivatives import Backward as Backward
from compiler.jaxprs.derivatives import Forward as Forward
from compiler.jaxprs.derivatives import backward_rule as backward_rule
from compiler.jaxprs.derivatives import forward_rule as forward_rule
from compiler.jaxprs.derivatives import no_tangent as no_tangent
from compiler.jaxprs.emit import bind as bind
from compiler.jaxprs.emit import primitive as primitive
from compiler.jaxprs.emit import rebind as rebind
from compiler.jaxprs.emit import sharded as sharded
from compiler.jaxprs.kinds import Equation as Equation
from compiler.jaxprs.kinds import Jaxpr as Jaxpr
from compiler.jaxprs.kinds import Var as Var
from compiler.jaxprs.kinds import closed as closed
from compiler.jaxprs.kinds import equations as equations
from compiler.jaxprs.kinds import has_refs as has_refs
from compiler.jaxprs.kinds import identity as identity
from compiler.jaxprs.kinds import is_array as is_array
from compiler.jaxprs.kinds import is_dropped as is_dropped
from compiler.jaxprs.kinds import is_equation as is_equation
from compiler.jaxprs.kinds import is_jaxpr as is_jaxpr
from compiler.jaxprs.kinds import is_literal as is_literal
from compiler.jaxprs.kinds import is_value as is_value
from compiler.jaxprs.kinds import reads as reads
from compiler.jaxprs.kinds import spec as spec
from compiler.jaxprs.kinds import variables as variables
from compiler.jaxprs.operands import bits as bits
from compiler.jaxprs.operands import fresh as fresh
from compiler.jaxprs.operands import literal as literal
from compiler.jaxprs.operands import scalar as scalar
from compiler.jaxprs.scopes import common_scope as common_scope
from compiler.jaxprs.scopes import current_scope as current_scope
from compiler.jaxprs.scopes import in_scopes as in_scopes
from compiler.jaxprs.scopes import label as label
from compiler.jaxprs.scopes import placed as placed
from compiler.jaxprs.scopes import provenance as provenance
from compiler.jaxprs.scopes import scope as scope
from compiler.jaxprs.scopes import shared_scopes as shared_scopes
from compiler.jaxprs.scopes import source as source
from compiler.jaxprs.scopes import within as within
