"""Saved programs: a folder that runs without the code that made it.

`program.jaxexport` is portable StableHLO (`jax.export`), `variables.safetensors`
the leaves by path (those with many zeros are in `packed.safetensors`, as
`compiler.packed` tells), `program.json` what joins them: shapes, trees, the recipe. The
folder is sealed (`compiler.sealed`): nothing is parsed before its hash matched.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export

from compiler import jaxprs, packed, sealed
from compiler.errors import ArtifactError, TraceError
from compiler.extents import Extent, replace_extents
from compiler.graph import Graph, Leaf, Packing, is_abstract
from compiler.program import Program
from mapping.core import describe

_PROGRAM, _VARIABLES, _CARD = (
    "program.jaxexport",
    "variables.safetensors",
    "program.json",
)
_PACKED = "packed.safetensors"
_PLATFORMS = ("cpu", "cuda", "tpu")
_KEYS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}
_NATIVE = frozenset(
    [
        "float16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "bool",
    ]
)


def save(program: Program, path: str | Path, *, vjp_order: int = 0) -> Path:
    """Writes a program to a folder that `load` runs in any process.

    It is exported for every batch size, and every other extent of the inputs that
    the function allows to vary (a warning says so where the batch is fixed, as one
    of 0 is: an extent that varies is at least 1); and for CPU, GPU and TPU where
    every operation exists on all three, else for this machine's platform.

    Args:
        program: what is saved.
        path: the folder; an earlier program there is replaced, whole.
        vjp_order: how often the loaded program can be differentiated.

    Raises:
        ArtifactError: if the program cannot be exported (it calls back into
            Python), or something else is at the path.

    >>> import tempfile, compiler as mc
    >>> program = mc.trace(lambda w, x: x @ w, jnp.eye(2), jnp.ones((1, 2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loaded = mc.load(program.save(folder + "/double"))
    >>> loaded(jnp.ones((3, 2))).tolist()
    [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    """
    exported, general = _export(program)
    leaves = program.graph.leaves
    arrays = {
        leaf.path: _storable(leaf.path, value)
        for leaf, value in zip(leaves, program.values, strict=True)
    }
    card = {
        "leaves": [[leaf.path, *_write_spec(leaf.spec)] for leaf in leaves],
        "inputs": [_write_spec(spec) for spec in program.graph.inputs],
        "in_tree": _write_tree(program.graph.in_tree),
        "out_tree": _write_tree(program.graph.out_tree),
        "bundled": program.graph.packing.bundled,
        "general": general,
        "platforms": list(exported.platforms),
        "recipe": [str(step) for step in program.recipe],
        "jax": jax.__version__,
    }
    dense, sparse = packed.apart(arrays)
    files = {
        _PROGRAM: bytes(exported.serialize(vjp_order=vjp_order)),
        _VARIABLES: safetensors.numpy.save(dense),
        _CARD: json.dumps(card, indent=1).encode(),
    }
    if sparse:
        files[_PACKED] = safetensors.numpy.save(sparse)
    return sealed.write(path, files)


def load(path: str | Path) -> Program:
    """Reads a program that `save` wrote; none of the model's code is needed.

    What comes back runs, takes `jax.jit` (and `jax.grad`, if it was saved with
    `vjp_order`), and can be saved again. Its equations are one opaque call, so
    passes find nothing in it to rewrite. Inputs and outputs that were NamedTuples
    or dataclasses are dicts by field now, since their classes are code. Keys of
    dicts that are no integers are strings. Several functions saved together are one
    call of all their inputs; save `program.member(name)` for one alone.

    A hash tells damage, not intent: load only what you would also run.

    Args:
        path: the folder.

    Raises:
        ArtifactError: if the folder is damaged, incomplete, from a JAX this one
            cannot read, or not a saved program.

    >>> import compiler as mc
    >>> mc.load("nowhere")
    Traceback (most recent call last):
    ...
    compiler.errors.ArtifactError: nowhere: expected a folder written by save, got: No
    such file or directory.
    """
    files = sealed.read(path)
    if missing := {_PROGRAM, _VARIABLES, _CARD} - files.keys():
        raise ArtifactError(f"{path}: is not a saved program, lacks {sorted(missing)}.")
    try:
        card = json.loads(files[_CARD])
        exported = export.deserialize(bytearray(files[_PROGRAM]))
        stored = safetensors.numpy.load(files[_VARIABLES])
        leaves = tuple(Leaf(p, _read_spec((s, d))) for p, s, d in card["leaves"])
        if _PACKED in files:
            sparse = safetensors.numpy.load(files[_PACKED])
            stored |= packed.together(sparse, {leaf.path: leaf.spec for leaf in leaves})
        if len({leaf.path for leaf in leaves}) != len(leaves):
            raise ValueError("a leaf stands twice")
        values = tuple(_restored(stored[leaf.path], leaf.spec) for leaf in leaves)
    except Exception as error:
        raise ArtifactError(
            f"{path}: was written by jax {_version(files)} and cannot be read by jax "
            f"{jax.__version__}: {type(error).__name__}: {error}. Save the program "
            "again with this version."
        ) from error
    taken, given = _read_layout(card["in_tree"]), _read_layout(card["out_tree"])
    source = Exported(
        exported, leaves, card["bundled"], taken.order, given, tuple(card["recipe"])
    )
    inputs = [_read_spec(card["inputs"][place]) for place in taken.order]
    return Program(source.graph(taken.tree, inputs), values, source)


class Layout(NamedTuple):
    """How flat values make up a tree whose classes were replaced by dicts.

    A dict is flattened in the order of its keys, a class in one of its own, which
    the exported function keeps.

    Attributes:
        tree: made of dicts, lists and tuples.
        order: for each leaf of the tree, its place among the flat values.
    """

    tree: Any
    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """What a loaded program is made from: an exported function.

    Attributes:
        function: the exported function of (leaves, flat inputs).
        leaves: its leaves.
        bundled: whether its variables are `mapping.Variables`.
        order: for each input of the program, its place among the function's.
        outputs: how its flat outputs make up the result.
        recipe: the passes that had been applied, as text.
    """

    function: export.Exported
    leaves: tuple[Leaf, ...]
    bundled: bool
    order: tuple[int, ...]
    outputs: Layout
    recipe: tuple[str, ...]

    def graph(self, in_tree: Any, inputs: Sequence[jax.ShapeDtypeStruct]) -> Graph:
        """The graph for inputs of these shapes: one call of the exported function."""
        count = len(self.leaves)

        def call(*arguments: Any) -> list[Any]:
            placed = zip(self.order, arguments[count:], strict=True)
            flat = [value for _, value in sorted(placed, key=lambda pair: pair[0])]
            results = self.function.call(list(arguments[:count]), flat)
            return [results[place] for place in self.outputs.order]

        specs = [*(leaf.spec for leaf in self.leaves), *inputs]
        try:
            jaxpr = jaxprs.make(call, specs)
        except Exception as error:
            allowed = [self.function.in_avals[count + place] for place in self.order]
            raise TraceError(
                f"the saved program takes {', '.join(map(str, allowed))}, got "
                f"{describe(list(inputs))}. Save it again from a trace on this shape."
            ) from error
        packing = Packing(None, self.bundled)
        return Graph(jaxpr, self.leaves, packing, in_tree, self.outputs.tree)


def _export(program: Program) -> tuple[export.Exported, list[int]]:
    """Exports for any extents and any platform; gives up, in turn, what fails.

    Returns:
        The exported function, and the extents of the sample it is general in.
    """
    free = [extent for extent in program.variants if extent.size]  # a symbol is not 0
    errors = []
    batch, rest = ([e for e in free if e.leading is flag] for flag in (True, False))
    for general in (free, batch, rest, []):
        for platforms in (_PLATFORMS, None):
            try:
                specs = _symbolic(program.graph.inputs, general)
                exported = _export_for(program, specs, platforms)
            except Exception as error:
                errors.append(error)
                continue
            if not any(extent.leading for extent in general):
                _warn_of_fixed_batch(program, errors)
            return exported, [extent.size for extent in general]
    raise ArtifactError(
        f"the program cannot be exported: {type(errors[-1]).__name__}: {errors[-1]}. "
        "Remove what calls back into Python (jax.debug.print, pure_callback)."
    ) from errors[-1]


def _warn_of_fixed_batch(program: Program, errors: list[Exception]) -> None:
    """Tells why; whoever loads the program will meet it."""
    why = "the function takes no other"
    batches = [extent.size for extent in program.variants if extent.leading]
    if 0 in batches:
        why = "one that varies is at least 1. Trace it on a batch that is not empty"
    elif batches and errors:
        why = f"{type(errors[0]).__name__}: {errors[0]}"
    warnings.warn(
        f"saved for the batch size of {describe(program.graph.inputs)} only: {why}",
        stacklevel=4,
    )


def _export_for(
    program: Program,
    specs: Sequence[jax.ShapeDtypeStruct],
    platforms: Sequence[str] | None,
) -> export.Exported:
    graph = program.specialise(specs)

    def flat(leaves: list[Any], inputs: list[Any]) -> list[Any]:
        return graph.evaluate(leaves, inputs)

    leaves = [leaf.spec for leaf in graph.leaves]
    return export.export(jax.jit(flat), platforms=platforms)(leaves, list(specs))


def _symbolic(
    inputs: Sequence[jax.ShapeDtypeStruct], general: Sequence[Extent]
) -> list[jax.ShapeDtypeStruct]:
    """The inputs with a symbol for each extent the export is to be general in."""
    if not general:
        return list(inputs)
    names = [f"{'batch' if e.leading else 'n'}{i}" for i, e in enumerate(general)]
    symbols = export.symbolic_shape(", ".join(names))
    return replace_extents(inputs, dict(zip(general, symbols, strict=True)))


def _storable(path: str, value: Any) -> np.ndarray:
    """A leaf as safetensors can hold it; small and unusual floats as bytes."""
    if is_abstract(value):
        raise ArtifactError(f"{path}: has a shape and no values. Trace with arrays.")
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):
        raise ArtifactError(
            f"{path}: is a random key. Pass the key as an input of the function."
        )
    array = np.array(value, order="C")
    if str(array.dtype) in _NATIVE:
        return array
    if array.dtype.itemsize == 1:
        return array.view(np.uint8)
    return array.view(f"uint{8 * array.dtype.itemsize}")


def _restored(stored: np.ndarray, spec: jax.ShapeDtypeStruct) -> jax.Array:
    if str(spec.dtype) not in _NATIVE:
        stored = stored.view(spec.dtype)
    if (stored.shape, stored.dtype) != (spec.shape, spec.dtype):
        raise ValueError(f"expected {describe(spec)}, found {describe(stored)}")
    return jnp.asarray(stored)


def _write_spec(spec: jax.ShapeDtypeStruct) -> list[Any]:
    return [list(spec.shape), str(spec.dtype)]


def _read_spec(spec: Sequence[Any]) -> jax.ShapeDtypeStruct:
    shape, name = spec
    if name in _KEYS:
        dtype: Any = jax.eval_shape(lambda: jax.random.key(0, impl=_KEYS[name])).dtype
    else:
        dtype = jnp.dtype(name)
    return jax.ShapeDtypeStruct(tuple(shape), dtype)


def _write_tree(tree: Any) -> Any:
    """A tree of standard containers as JSON; other nodes become dicts by field.

    What stands for a leaf is its place among the flat values.
    """
    return _write_node(jax.tree.unflatten(tree, range(tree.num_leaves)))


def _write_node(node: Any) -> Any:
    if node is None or isinstance(node, int):
        return node
    if type(node) in (list, tuple):
        return [type(node).__name__, *map(_write_node, node)]
    found, _ = jax.tree_util.tree_flatten_with_path(node, lambda n: n is not node)
    keys = [_field(path) for path, _ in found]
    children = [_write_node(child) for _, child in found]
    if any(type(key) is int for key in keys):  # an object of JSON has strings only
        return ["dict", *map(list, zip(keys, children, strict=True))]
    return dict(zip(keys, children, strict=True))


def _field(path: tuple[Any, ...]) -> str | int:
    (entry,) = path
    if isinstance(entry, jax.tree_util.DictKey) and type(entry.key) is int:
        return entry.key
    return jax.tree_util.keystr(path, simple=True)


def _read_layout(data: Any) -> Layout:
    node = _read_node(data)
    return Layout(jax.tree.structure(node), tuple(jax.tree.leaves(node)))


def _read_node(data: Any) -> Any:
    if isinstance(data, list):
        if data[0] == "dict":
            return {key: _read_node(child) for key, child in data[1:]}
        kind = {"list": list, "tuple": tuple}[data[0]]
        return kind(map(_read_node, data[1:]))
    if isinstance(data, dict):
        return {name: _read_node(child) for name, child in data.items()}
    return data


def _version(files: dict[str, bytes]) -> str:
    try:
        return json.loads(files[_CARD])["jax"]
    except (KeyError, ValueError, TypeError):
        return "(unknown)"
