"""A program as a graph for TensorBoard; needs the extra `tensorboard`."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from compiler.errors import MissingExtraError
from compiler.graph import Leaf
from compiler.inspect.view.boxes import Box, Tree


def write(tree: Tree, folder: Path) -> Path:
    """Writes an event file with the graph to a folder.

    Scopes become TensorBoard's name scopes, bodies of loops and calls too; inputs are
    placeholders and leaves constants. FLOPs, the source line and parameters of an
    operation are its attributes.

    Raises:
        MissingExtraError: if tensorboard is not installed.
    """
    event = _part("compat.proto.event_pb2").Event
    writer = _part("summary.writer.event_file_writer").EventFileWriter
    folder.mkdir(parents=True, exist_ok=True)
    file = writer(str(folder))
    file.add_event(event(graph_def=graph(tree).SerializeToString()))
    file.close()
    return folder


def _part(name: str) -> Any:
    try:
        return importlib.import_module(f"tensorboard.{name}")
    except ImportError as error:
        raise MissingExtraError(
            'format="tensorboard": expected the package tensorboard, found none. '
            "Install it with: pip install mapping[tensorboard]"
        ) from error


def graph(tree: Tree) -> Any:
    """The program as TensorBoard's `GraphDef`."""
    names = _names(tree)
    made = _part("compat.proto.graph_pb2").GraphDef()
    made.versions.producer = 22  # of the format; readers refuse graphs without one
    for leaf in tree.leaves:
        node = made.node.add(name=names[leaf], op="Const")
        _shaped(node, [leaf.spec])
    for box in tree.boxes:
        if box in names:
            _add(made, box, names)
    return made


def _names(tree: Tree) -> dict[Box | Leaf, str]:
    """A name for each leaf and operation: the scopes it is in, joined by `/`."""
    found: dict[Box | Leaf, str] = {}
    taken: dict[str, int] = {}
    scopes: dict[Box, str] = {tree.root: ""}

    def free(name: str) -> str:
        number = taken.get(name, 0)
        taken[name] = number + 1
        return free(f"{name}_{number}") if number else name

    for box in tree.boxes[1:]:
        outer = scopes[box.parent] if box.parent else ""
        if box.kind == "repeat":
            scopes[box] = outer
            continue
        scopes[box] = free(f"{outer}/{_allowed(box.name)}".strip("/"))
        if box.kind in ("operation", "input", "output"):
            found[box] = scopes[box]
    for leaf in tree.leaves:
        found[leaf] = free(f"leaves/{_allowed(leaf.path, '/')}")
    return found


def _allowed(name: str, also: str = "") -> str:
    kept = re.sub(rf"[^A-Za-z0-9_.\-{also}]", "_", name)
    return kept if re.match(r"[A-Za-z0-9.]", kept) else f"x{kept}"


def _add(made: Any, box: Box, names: dict[Box | Leaf, str]) -> None:
    kind = {"input": "Placeholder", "output": "Identity"}.get(box.kind, box.name)
    node = made.node.add(name=names[box], op=kind)
    node.input.extend(names[o] for o in box.operands if not isinstance(o, str))
    node.attr["shape"].s = box.shape.encode()
    if box.flops:
        node.attr["flops"].i = box.flops
    for name, text in (("source", box.source), *box.details):
        if text:
            node.attr[name].s = text.encode()


def _shaped(node: Any, specs: list[Any]) -> None:
    for spec in specs:
        shape = node.attr["_output_shapes"].list.shape.add()
        for size in spec.shape:
            shape.dim.add(size=size)
        node.attr["shape"].s = f"{spec.dtype}{list(spec.shape)}".encode()
