"""What few bits cost in time: products with stored weights against float32 ones.

    python benchmarks/quantize.py

Each row is a product of so many tokens with a matrix. The rival is `x @ w` in float32;
"decoded" is what everyone writes first, `x @ decode(w)`; "ours" is what the compiler
emits; "int8 x int8" has rounded activations too, and sums in int32 ("dot": what
`jax.lax.dot_general` makes of it). All take turns in one process, and results are
checked before anything is timed; medians over slices. Numbers are ratios of times to
float32's: below one is faster.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import compiler as mc
from compiler import targets
from compiler.passes.quantize.storage.encoding import Encoding
from compiler.passes.quantize.storage.scheme import Scheme, as_scheme

TOKENS = (1, 16, 128, 512)
SHAPES = ((256, 1024), (768, 3072), (4096, 4096))
SCHEMES = {"int8": Scheme("int8"), "int4": as_scheme("int4"), "nf4": as_scheme("nf4")}


def normal(*shape):
    """Numbers of unit variance."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def call(function, *arguments):
    """A compiled function, bound to its arguments."""
    compiled = jax.jit(function)
    return lambda: compiled(*arguments)


def check(name, got, want, tolerance):
    """Stops if two results are further apart than a share of the largest number."""
    worst = float(jnp.abs(got - want).max() / jnp.abs(want).max())
    if not worst <= tolerance:
        raise SystemExit(f"{name}: outputs differ by {worst:.1e} of the largest")


def weight_only(x, code, parts):
    """Decoding first, and ours."""
    return (
        call(lambda x, parts: x @ code.decode(parts), x, parts),
        call(lambda x, parts: targets.weight_only(x, code, parts), x, parts),
    )


def integers(x, code, parts):
    """The plain product of int8 with int8, and ours."""
    codes = jnp.clip(jnp.round(x * 40), -127, 127).astype(jnp.int8)
    unit = jnp.ones((1, 1))
    numbers = (((1,), (0,)), ((), ()))
    return (
        call(
            lambda x, w: jax.lax.dot_general(
                x, w, numbers, preferred_element_type=jnp.int32
            ),
            codes,
            parts["values"],
        ),
        call(
            lambda x, parts: targets.integer_product(x, unit, None, code, parts)[0],
            codes,
            parts,
        ),
    )


def measure(tokens, shape, stored, w):
    """One row: float32's time, and the others' as shares of it."""
    x = normal(tokens, shape[0])
    calls = {"float32": call(jnp.matmul, x, w)}
    for name, (code, parts) in stored.items():
        plain, ours = weight_only(x, code, parts)
        check(name, ours(), plain(), 1e-5)
        calls |= {f"{name} decoded": plain, f"{name} ours": ours}
    dot, ours = integers(x, *stored["int8"])
    check("int8 x int8", ours().astype(jnp.float32), dot().astype(jnp.float32), 0)
    calls |= {"int8 x int8 dot": dot, "int8 x int8 ours": ours}
    times = mc.latency(calls, rounds=5, seconds=0.01)
    base = times.pop("float32")
    ratios = "".join(f"{time / base:9.2f}" for time in times.values())
    return f"{tokens:4} x {shape[0]:4} x {shape[1]:4}{base * 1e3:9.3f}{ratios}"


def main():
    """Prints the table; sizes can be named, as in `quantize.py 768x3072`."""
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}")
    names = [*SCHEMES, "int8 x int8"]
    print(f"{'':18}{'float32':>9}" + "".join(f"{name:>18}" for name in names))
    print(
        f"{'':18}{'ms':>9}"
        + f"{'decoded':>9}{'ours':>9}" * 3
        + f"{'dot':>9}{'ours':>9}"
    )
    for shape in SHAPES:
        if len(sys.argv) > 1 and f"{shape[0]}x{shape[1]}" not in sys.argv[1:]:
            continue
        w, stored = normal(*shape), {}
        for name, scheme in SCHEMES.items():
            code = Encoding(scheme, shape, "float32", (0,))
            stored[name] = code, jax.jit(code.encode)(w)
        for tokens in TOKENS:
            print(measure(tokens, shape, stored, w), flush=True)


if __name__ == "__main__":
    main()
