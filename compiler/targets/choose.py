"""Which weights are decoded a tile at a time on a CPU, and how large a tile is.

XLA's CPU back end writes a decoded matrix to memory before it multiplies. Measured on
two cores (`benchmarks/quantize.py` repeats it): below 2^18 numbers a loop costs more
than that saves; up to some millions, tiles that stay in a core's cache are the best;
above, tiles that all cores share, along the axis that is stored first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from compiler.targets.matrices import columns

if TYPE_CHECKING:
    from compiler.passes.quantize.storage.encoding import Encoding

_SMALL, _MEDIUM, _LARGE = 2**18, 2**21, 2**22
_FEW = 64
_IN_CACHE, _SHARED = 2**16, 2**20
_ROWS, _INTEGER_ROWS, _COLUMNS = 256, 512, 64


class Tiling(NamedTuple):
    """How a matrix is cut.

    Attributes:
        axis: along which: the first, or that of the columns.
        extent: of a tile; the last may be smaller. Of packed rows: that many bytes.
    """

    axis: int
    extent: int


def few(tokens: Any, most: int) -> bool:
    """Whether there are so many tokens at most; if that may vary, there may be one."""
    return not isinstance(tokens, int) or tokens <= most


def in_tiles(encoding: Encoding) -> bool:
    """Whether a product of few tokens with a weight would be taken in tiles."""
    return pays(1, 1, encoding)


def pays(matrices: int, tokens: int, encoding: Encoding) -> bool:
    """Whether a CPU should decode a stack of matrices in tiles.

    With many tokens a product costs so much that decoding all first does not matter
    before the matrix is large.
    """
    size = matrices * encoding.count * columns(encoding)
    return size >= (_SMALL if few(tokens, _FEW) else _MEDIUM)


def tiling(tokens: int, encoding: Encoding, stored: int) -> Tiling | None:
    """How a CPU should cut one matrix; None: not at all.

    Args:
        tokens: that are multiplied by it.
        encoding: of the matrix, as `matrices.normal` gives it.
        stored: how many bytes its rows are in each column.

    >>> from compiler.passes.quantize.storage.encoding import Encoding
    >>> from compiler.passes.quantize.storage.scheme import Scheme
    >>> code = Encoding(Scheme("int8"), (4096, 4096), "float32", rows=(0,))
    >>> tiling(1, code, 4096)
    Tiling(axis=0, extent=256)
    """
    rows, count = encoding.count, columns(encoding)
    size = rows * count
    if size < _IN_CACHE:
        return None
    large = size >= _LARGE or (not few(tokens, 7) and size >= _MEDIUM)
    if encoding.axis == 0:
        extent = _whole_groups(encoding, stored, _ROWS) if large else None
        if extent is not None and extent < stored:
            return Tiling(0, extent)
        extent = max(_IN_CACHE // (4 * rows) // _COLUMNS, 1) * _COLUMNS
        return _unless_all(1, extent, count)
    first = encoding.shape[0]
    numbers = _SHARED if size > _LARGE else _IN_CACHE
    return _unless_all(0, max(numbers * first // size, 1), first)


def integer_tiling(tokens: int, encoding: Encoding, stored: int) -> Tiling | None:
    """How a CPU should cut a matrix of integers for a product with integers.

    XLA's products of int8 matrices need no tiles, but for few tokens and a large
    matrix whose rows are stored first, all of which it would rearrange.
    """
    large = encoding.count * columns(encoding) > _LARGE and few(tokens, 16)
    if not large or encoding.axis != 0:
        return None
    extent = _whole_groups(encoding, stored, _INTEGER_ROWS)
    return None if extent is None else _unless_all(0, extent, stored)


def groups_at_once(tokens: int, encoding: Encoding) -> int:
    """How many groups of rows get sums of their own at the same time."""
    count = tokens if isinstance(tokens, int) else _FEW
    return max(_SHARED // max(count * columns(encoding), 1), 1)


def aligned(encoding: Encoding, stored: int) -> bool:
    """Whether rows can be cut: no group and no padding is between two planes."""
    planes = -(-encoding.count // max(stored, 1))
    if planes == 1:
        return True
    whole = encoding.groups == 1 or stored % encoding.group == 0
    return whole and planes * stored == encoding.count


def _whole_groups(encoding: Encoding, stored: int, rows: int) -> int | None:
    """About so many rows, as bytes of whole groups; None if they cannot be cut."""
    if not aligned(encoding, stored):
        return None
    extent = max(rows * stored // encoding.count, 1)
    if encoding.groups == 1:
        return extent
    return -(-extent // encoding.group) * encoding.group


def _unless_all(axis: int, extent: int, whole: int) -> Tiling | None:
    return Tiling(axis, extent) if extent < whole else None
