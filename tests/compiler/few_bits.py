"""What is stored in few bits, in numpy: one group at a time, from the definitions."""

import math

import ml_dtypes
import numpy as np

F32 = np.float32
INTEGERS = {"int8": 127, "int4": 7, "int2": 1, "ternary": 1}
FLOATS = {
    "float8_e4m3": (448, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": (57344, ml_dtypes.float8_e5m2),
    "fp4": (6, ml_dtypes.float4_e2m1fn),
}
BLOCKS = {"mxfp8": ("float8_e4m3", 8), "mxfp4": ("fp4", 2), "mxint8": ("int8", 6)}
NAMES = [*INTEGERS, *FLOATS, "nf4", *BLOCKS]
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634),
        *(0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
        *(0.7229568362236023, 1.0),
    ],
    F32,
)


def fewer_bits(x, bits):
    """Rounds float32 to so many mantissa bits, half to even."""
    drop = 23 - bits
    raw = np.asarray(x, F32).view(np.int32).astype(np.int64)
    odd = (raw >> drop) & 1
    raw = (raw + (1 << (drop - 1)) - 1 + odd) >> drop << drop
    return raw.astype(np.int32).view(F32)


def in_halves(x):
    """The sum of the last axes, folding each in half again and again."""
    while x.ndim and x.shape[-1] != 1:
        size = 1 << (x.shape[-1] - 1).bit_length()
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])])
        x = x[..., : size // 2] + x[..., size // 2 :]
    return x[..., 0]


def total(x):
    """The sum of [rows, columns]: rows first."""
    return in_halves(in_halves(x.T))


def rounded_up(scale, dtype):
    kind = ml_dtypes.finfo(dtype)
    scale = F32(min(max(scale, F32(kind.tiny)), F32(min(kind.max, F32(3.4028235e38)))))
    near = scale.astype(dtype)
    if near.astype(F32) < scale:
        near = np.nextafter(near, np.asarray(np.inf, dtype))
    return near.astype(F32)


def fit(scheme, base, dtype):
    if base == 0:
        return F32(1)
    if scheme.dtype in BLOCKS:
        offset = 6 if scheme.dtype == "mxint8" else 0
        exponent = math.floor(math.log2(base))
        return F32(2.0 ** min(max(exponent, -126), 127 - offset))
    return rounded_up(base, dtype)


def units(scheme, x, scale, zero):
    """Codes as numbers, before they are scaled and shifted back."""
    name = BLOCKS[scheme.dtype][0] if scheme.dtype in BLOCKS else scheme.dtype
    ratio = x * (F32(1) / scale)
    if name in INTEGERS:
        low, high = -INTEGERS[name] - (not scheme.symmetric), INTEGERS[name]
        return np.clip(np.round(ratio) + F32(zero), low, high).astype(F32)
    if name == "nf4":
        return NF4[np.abs(ratio[..., None] - NF4).argmin(-1)]
    peak, dtype = FLOATS[name]
    return np.clip(ratio, -peak, peak).astype(dtype).astype(F32) + F32(0)


def candidate(scheme, x, base, factor, dtype):
    scale = fit(scheme, F32(base * factor), dtype) if base else F32(1)
    if scheme.symmetric:
        return scale, 0
    low = -INTEGERS[scheme.dtype] - 1
    least = F32(x.min(initial=0)) * factor
    return scale, np.clip(np.round(F32(low) - least / scale), low, -low - 1)


def base_scale(scheme, x):
    largest = np.abs(x).max(initial=0)
    if scheme.dtype in BLOCKS:
        exponent = BLOCKS[scheme.dtype][1]
        base = 2.0 ** (math.floor(math.log2(largest)) - exponent) if largest else 0
    elif not scheme.symmetric:
        spread = x.max(initial=0) - x.min(initial=0)
        base = spread * F32(1 / (2 * INTEGERS[scheme.dtype] + 1))
    elif scheme.dtype in ("ternary", "int2"):
        above = np.abs(x) > total(np.abs(x)) * F32(0.7 / max(x.size, 1))
        base = total(np.where(above, np.abs(x), F32(0))) / F32(max(above.sum(), 1))
    else:
        peak = {"nf4": 1} | INTEGERS | {n: p for n, (p, _) in FLOATS.items()}
        base = largest * F32(1 / peak[scheme.dtype])
    return F32(max(base, np.finfo(F32).tiny)) if largest else F32(0)


def reference(scheme, x, dtype):
    """The scale, the zero point and the units of one group of rows (and columns)."""
    base = base_scale(scheme, x)
    steps = np.arange(40)
    grid = 1 - 0.5 * steps / 39
    if scheme.dtype in ("ternary", "int2") and scheme.symmetric:
        grid = np.array([1, *(1.5 - steps / 39)])
    if scheme.dtype in BLOCKS:
        grid = np.array([1, 2, 0.5])
    first = candidate(scheme, x, base, F32(1), dtype)
    best, least = first, np.inf
    for factor in grid.astype(F32) if scheme.clip == "mse" else ():
        scale, zero = candidate(scheme, x, base, factor, dtype)
        guess = (units(scheme, x, scale, zero) - F32(zero)) * (scale / first[0])
        error = total(
            fewer_bits((x * (F32(1) / first[0]) - fewer_bits(guess, 22)) ** 2, 22)
        )
        if error < least:
            best, least = (scale, zero), error
    return (*best, units(scheme, x, *best))


def as_merged(code, w):
    """[stack, rows, columns] of an array, and the order of its axes there."""
    axes = range(len(code.shape))
    others = [a for a in axes if a not in code.rows + code.stack]
    order = [*code.stack, *code.rows, *others]
    sizes = [
        math.prod(code.shape[a] for a in group) for group in (code.stack, code.rows)
    ]
    moved = np.transpose(w, order)
    columns = math.prod(code.shape[a] for a in others)
    return moved.reshape(*sizes, columns), order, moved.shape


def decoded(code, w):
    """What numpy makes of an array: (decoded in float32, every scale in order)."""
    dtype = np.dtype(code.scheme.scale_dtype or code.dtype)
    matrices, order, shape = as_merged(code, np.asarray(w, F32))
    result, scales = np.zeros_like(matrices), np.zeros_like(matrices)
    rows, columns = matrices.shape[1:]
    group = code.scheme.group
    size = group if isinstance(group, int) else max(rows, 1)
    width = columns if group == "tensor" else 1
    for s in range(matrices.shape[0]):
        for i in range(0, rows, size):
            for c in range(0, columns, max(width, 1)):
                part = np.s_[s, i : i + size, c : c + width]
                scale, zero, unit = reference(code.scheme, matrices[part], dtype)
                result[part] = (unit - F32(zero)) * scale
                scales[part] = scale
    back = np.argsort(order)
    return [np.transpose(x.reshape(shape), back) for x in (result, scales)]


def arrays(shape, seed=0):
    """Weights of different sizes; columns of zeros, of one sign, and full of ties."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.uniform(-3, 3, shape[-1])
    w = rng.normal(size=shape) * sizes.reshape((1,) * (len(shape) - 1) + (-1,))
    w[..., ::5] = 0
    w[..., 1::5] = np.abs(w[..., 1::5])
    w[..., 2::5] = rng.integers(-9, 9, w[..., 2::5].shape) * 1.5
    return w.astype(F32)
