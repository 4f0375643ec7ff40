"""What a platform does best: the arithmetic behind a product, by platform and shape.

Public: [`weight_only`][], [`integer_product`][], [`integer_convolution`][],
[`in_tiles`][].
"""

from compiler.targets.choose import in_tiles as in_tiles
from compiler.targets.convolution import integer_convolution as integer_convolution
from compiler.targets.integers import integer_product as integer_product
from compiler.targets.weight_only import weight_only as weight_only
