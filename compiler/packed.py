"""Arrays with many zeros as bytes on disk: where they are not zero, and what is there.

An array is taken as words of its own bits, so that nothing is lost: a negative zero is
no zero, and every NaN stays what it is. Of n words of which k are not zero, each of b
bytes, one of these is stored, whichever is the smallest:

- `bitmask`: a bit for each word, and the words that are not zero:
  $n / 8 + k b$ bytes; $(1 - s) + 1 / 32$ of float32 with a share s of zeros.
- `gaps`: before each word that is not zero the number of zeros, in a byte; a longer
  run has words of zero in it, each after 255 zeros: about $k (b + 1)$ bytes.
- `nibbles`: as `bitmask`, of four-bit words: for codes of four bits, two to a byte.
- `bits`: of booleans, one bit each.
- the array itself.

So what is read from a file is at most some 256 times as large as the file, and no
array is made before its parts were found to be those of one of its size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Parts: TypeAlias = dict[str, Array]
"""By kind and name, such as `gaps/values`: flat unsigned integers."""

_OVERHEAD = 256
"""What must be gained at least: each part has an entry in the file's header."""

_LONGEST = 255
_SIZES = (1, 2, 4, 8)


def pack(array: Array) -> Parts | None:
    """What is stored of an array; None where the array itself is no larger.

    >>> array = np.zeros(4096, np.float32)
    >>> array[7] = -0.0
    >>> parts = pack(array)
    >>> parts["gaps/values"][0].tobytes() == array[7].tobytes()
    True
    >>> sum(part.nbytes for part in parts.values())
    81
    """
    if array.dtype.itemsize not in _SIZES or array.nbytes <= _OVERHEAD:
        return None
    if array.dtype == np.bool_:
        return {"bits/bits": np.packbits(array.ravel())}
    words = _words(array)
    filled = words != 0
    count = int(np.count_nonzero(filled))
    sizes = {"bitmask": -(-words.size // 8) + count * words.itemsize}
    # Every gap is stored, and every 256th word at most besides.
    sizes["gaps"] = (count + 1) * (words.itemsize + 1)
    if words.itemsize == 1:
        sizes["nibbles"] = -(-words.size // 4)
    limit = words.nbytes - _OVERHEAD
    best: Parts | None = None
    for kind in sorted(sizes, key=sizes.__getitem__):
        if sizes[kind] < limit:
            made = _PACK[kind](words, filled)
            size = sum(part.nbytes for part in made.values())
            if size < limit:
                best, limit = made, size
    return best


def unpack(parts: Mapping[str, Array], shape: tuple[int, ...], dtype: Any) -> Array:
    """The array that `pack` was given, bit for bit.

    Args:
        parts: what is stored.
        shape: of the array.
        dtype: of the array.

    Raises:
        ValueError: if the parts are not those of such an array. Nothing larger than
            256 times the parts is allocated before that is known.

    >>> array = np.arange(9000, dtype=np.int16) % 100 // 99
    >>> np.array_equal(unpack(pack(array), array.shape, array.dtype), array)
    True
    """
    dtype = np.dtype(dtype)
    kinds = {name.partition("/")[0] for name in parts}
    kind = kinds.pop() if len(kinds) == 1 else ""
    if kind not in _UNPACK:
        raise ValueError(f"expected the parts of one array, found {sorted(parts)[:5]}")
    if dtype.itemsize not in _SIZES or any(type(n) is not int or n < 0 for n in shape):
        raise ValueError(f"cannot be stored packed: {dtype}{list(shape)}")
    given = {name.partition("/")[2]: part for name, part in parts.items()}
    wanted = {"bitmask": _MASKED, "nibbles": _MASKED, "gaps": _GAPS, "bits": _BITS}
    word = np.dtype(f"uint{8 * dtype.itemsize}")
    types = {
        name: word if own is None else np.dtype(own)
        for name, own in wanted[kind].items()
    }
    found = {name: part.dtype for name, part in given.items() if part.ndim == 1}
    if found != types:
        raise ValueError(f"expected flat parts {types}, found {found}")
    if kind in ("nibbles", "bits") and dtype.itemsize != 1:
        raise ValueError(f"{kind} are no words of {dtype}")
    if (kind == "bits") != (dtype == np.bool_):
        raise ValueError(f"{kind} cannot be those of {dtype}")
    words = _UNPACK[kind](given, math.prod(shape), word)
    return words.view(dtype).reshape(shape)


def apart(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], Parts]:
    """The arrays that are stored as they are, and the parts of the others.

    >>> dense, parts = apart({"a": np.ones(999), "b": np.zeros(999)})
    >>> [*dense], [*parts]
    (['a'], ['b/gaps/gaps', 'b/gaps/values'])
    """
    dense: dict[str, Array] = {}
    parts: Parts = {}
    for path, array in arrays.items():
        found = pack(array)
        if found is None:
            dense[path] = array
        else:
            parts |= {f"{path}/{name}": part for name, part in found.items()}
    return dense, parts


def together(parts: Parts, specs: Mapping[str, Any]) -> dict[str, Array]:
    """The arrays that were stored in parts.

    Args:
        parts: all of them.
        specs: shapes and dtypes by path, of these arrays and of others.

    Raises:
        ValueError: if parts are missing, too many, or of another array.
    """
    owners: dict[str, Parts] = {}
    for name, part in parts.items():
        path, kind, own = name.rsplit("/", 2)
        owners.setdefault(path, {})[f"{kind}/{own}"] = part
    return {
        path: unpack(found, tuple(specs[path].shape), specs[path].dtype)
        for path, found in owners.items()
    }


_MASKED = {"bitmask": "uint8", "values": None}
_GAPS = {"gaps": "uint8", "values": None}
_BITS = {"bits": "uint8"}


def _words(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(f"uint{8 * array.itemsize}")


def _pack_bitmask(words: Array, filled: Array) -> Parts:
    return {"bitmask/bitmask": np.packbits(filled), "bitmask/values": words[filled]}


def _unpack_bitmask(parts: Parts, size: int, word: Any) -> Array:
    filled, values = _positions(parts["bitmask"], size), parts["values"]
    if np.count_nonzero(filled) != values.size:
        raise ValueError(f"a bitmask of other than {values.size} values")
    words = np.zeros(size, word)
    words[filled] = values
    return words


def _pack_gaps(words: Array, filled: Array) -> Parts:
    """Where a run of zeros is too long for a byte, zeros of it are stored as words."""
    places = np.flatnonzero(filled)
    ends = np.append(places, words.size)  # the last run ends where the array does
    starts = np.insert(places + 1, 0, 0)
    runs = ends - starts
    more, rest = np.divmod(runs, _LONGEST + 1)
    counts = more + 1
    last = np.cumsum(counts) - 1
    gaps = np.full(int(counts.sum()), _LONGEST, np.uint8)
    gaps[last] = rest
    values = np.zeros(gaps.size, words.dtype)
    values[last[:-1]] = words[places]
    return {"gaps/gaps": gaps, "gaps/values": values[:-1]}


def _unpack_gaps(parts: Parts, size: int, word: Any) -> Array:
    gaps, values = parts["gaps"], parts["values"]
    ends = np.cumsum(gaps, dtype=np.int64) + np.arange(gaps.size, dtype=np.int64)
    if gaps.size != values.size + 1 or int(ends[-1]) != size:
        raise ValueError(f"gaps of an array of other than {size} words")
    words = np.zeros(size, word)
    words[ends[:-1]] = values
    return words


def _pack_nibbles(words: Array, filled: Array) -> Parts:
    del filled
    nibbles = np.stack([words & 15, words >> 4], axis=1).ravel()
    filled = nibbles != 0
    kept = nibbles[filled]
    kept = np.append(kept, np.zeros(kept.size % 2, np.uint8))
    values = kept[::2] | kept[1::2] << 4
    return {"nibbles/bitmask": np.packbits(filled), "nibbles/values": values}


def _unpack_nibbles(parts: Parts, size: int, word: Any) -> Array:
    filled, values = _positions(parts["bitmask"], 2 * size), parts["values"]
    count = int(np.count_nonzero(filled))
    if -(-count // 2) != values.size:
        raise ValueError(f"a bitmask of other than {2 * values.size} nibbles")
    kept = np.stack([values & 15, values >> 4], axis=1).ravel()[:count]
    nibbles = np.zeros(2 * size, np.uint8)
    nibbles[filled] = kept
    return nibbles[::2] | nibbles[1::2] << 4


def _unpack_bits(parts: Parts, size: int, word: Any) -> Array:
    return _positions(parts["bits"], size).view(word)


def _positions(packed: Array, size: int) -> Array:
    """As many bits as there are numbers, as booleans."""
    if packed.size != -(-size // 8):
        raise ValueError(f"{packed.size} bytes of bits, for {size} numbers")
    return np.unpackbits(packed, count=size).astype(bool)


_PACK = {"bitmask": _pack_bitmask, "gaps": _pack_gaps, "nibbles": _pack_nibbles}
_UNPACK = {
    "bitmask": _unpack_bitmask,
    "gaps": _unpack_gaps,
    "nibbles": _unpack_nibbles,
    "bits": _unpack_bits,
}
