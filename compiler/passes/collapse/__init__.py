"""Rules that merge an affine map into the product before or after it.

    (x W + b) s + t  ->  x (W s) + (b s + t)
    (x s + t) W + b  ->  x (s W) + (t W + b)

for every `dot_general` and `conv_general_dilated` (grouped, dilated and transposed
convolutions are the same primitive) whose kernel is known, when `s` and `t` are known
and constant along the axes the kernel has no part in. A batch norm in inference is
such a map, and so is what a layer norm does last.

`layout` lays arrays out along other axes; `notes` says what is remembered of a value;
`products`, `affine` and `linear` are the rules for products, for elementwise
arithmetic, and for what lies in between (changes of axes, sums, means, concatenation).
"""

from compiler.passes.collapse.affine import AFFINE
from compiler.passes.collapse.linear import LINEAR
from compiler.passes.collapse.products import PRODUCTS

COLLAPSE = PRODUCTS | AFFINE | LINEAR
