"""What torch keeps as one tensor and linen as several: recurrent gates, attention.

[`unfuse`][] gives each part the name of the linen layer it belongs to, so that from
there on it is a dense layer like any other; [`fuse`][] is the way back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Dict

import numpy as np

from mapping.errors import LoadError

Tensors = dict[str, np.ndarray]

GATES = {1: ("",), 3: ("r", "z", "n"), 4: ("i", "f", "g", "o")}
"""Torch's order of the gates of RNN, GRU and LSTM, by how many there are."""

_LAYER = re.compile(r"(.*\.)?weight_ih(?:_(l\d+(?:_reverse)?))?")
_INPUT = ("query", "key", "value")


def unfuse(tensors: Dict[str, np.ndarray]) -> Tensors:
    """Takes fused tensors apart.

    - A recurrent layer `rnn.weight_ih_l0`, ... becomes the cell `rnn.l0`: `rnn.l0.ii`,
      `rnn.l0.hi`, ... with a `weight` each, and with the sum of torch's two biases
      where linen has its one. A single cell, `cell.weight_ih`, is `cell` itself.
    - `attention.in_proj_weight` becomes `attention.query`, `.key` and `.value`,
      `attention.out_proj` becomes `attention.out`.
    - `num_batches_tracked` has no counterpart and is left out.

    >>> parts = unfuse({"a.in_proj_weight": np.zeros((6, 2))})
    >>> {name: part.shape for name, part in parts.items()}
    {'a.query.weight': (2, 2), 'a.key.weight': (2, 2), 'a.value.weight': (2, 2)}
    """
    rest = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] != "num_batches_tracked"
    }
    parts: Tensors = {}
    for name in list(rest):
        layer = _LAYER.fullmatch(name)
        if layer is not None:
            parts |= _cell(rest, layer[1] or "", layer[2] or "")
        elif name.rpartition(".")[2] in ("in_proj_weight", "q_proj_weight"):
            parts |= _attention(rest, "".join(name.rpartition(".")[:2]))
    return rest | parts


def fuse(parts: Dict[str, np.ndarray]) -> Tensors:
    """Joins what torch keeps as one: the inverse of [`unfuse`][].

    Of two biases the first is linen's one, the second zero.

    >>> whole = {"a.in_proj_weight": np.arange(6).reshape(6, 1)}
    >>> fuse(unfuse(whole))["a.in_proj_weight"].ravel().tolist()
    [0, 1, 2, 3, 4, 5]
    """
    rest = dict(parts)
    for name in parts:
        if name not in rest:
            continue  # joined with one before it
        owner, _, part = name.rpartition(".")[0].rpartition(".")
        dot = "." if owner else ""
        if part == "query" and all(f"{owner}{dot}{p}.weight" in rest for p in _INPUT):
            _fuse_attention(rest, f"{owner}{dot}")
        cell = re.fullmatch(r"(.*\.)?(l\d+(?:_reverse)?)", owner)
        if cell is not None and part in ("ii", "ir", "i"):
            _fuse_cell(rest, cell[1] or "", cell[2])
    return rest


def _cell(rest: Tensors, owner: str, layer: str) -> Tensors:
    """The gates of one layer, in one direction; without a name, of a single cell."""
    end = f"_{layer}" if layer else ""
    if f"{owner}weight_hr{end}" in rest:
        raise LoadError(
            f"{owner}weight_hr{end}: expected an LSTM without projection, got one "
            "with proj_size. Write the projection as a layer of its own."
        )
    if f"{owner}weight_hh{end}" not in rest:
        raise LoadError(
            f"{owner}weight_ih{end}: expected {owner}weight_hh{end} beside it, got "
            "none. Pass the whole state_dict."
        )
    into, back = (rest.pop(f"{owner}weight_{k}{end}") for k in ("ih", "hh"))
    gates = GATES.get(len(back) // back.shape[1])
    if gates is None:
        raise LoadError(
            f"{owner}weight_hh{end}: expected the gates of an RNN, a GRU or an "
            f"LSTM, got {list(back.shape)}."
        )
    none = np.zeros(len(back), back.dtype)
    biases = [rest.pop(f"{owner}bias_{k}{end}", none) for k in ("ih", "hh")]
    cell: Tensors = {}
    each = (np.split(part, len(gates)) for part in (into, back, *biases))
    for gate, w_in, w_back, b_in, b_back in zip(gates, *each, strict=True):
        dot = "." if layer else ""
        x, h = (f"{owner}{layer}{dot}{side}{gate}" for side in "ih")
        cell |= {f"{x}.weight": w_in, f"{h}.weight": w_back}
        if gate == "n":
            cell |= {f"{x}.bias": b_in, f"{h}.bias": b_back}
        else:
            cell[f"{h if len(gates) == 4 else x}.bias"] = b_in + b_back
    return cell


def _fuse_cell(rest: Tensors, owner: str, layer: str) -> None:
    cell = f"{owner}{layer}"
    gates = next(g for g in GATES.values() if f"{cell}.i{g[-1]}.weight" in rest)
    for kind, side in (("ih", "i"), ("hh", "h")):
        weights = [rest.pop(f"{cell}.{side}{gate}.weight") for gate in gates]
        rest[f"{owner}weight_{kind}_{layer}"] = np.concatenate(weights)
    none = np.zeros(len(weights[0]), weights[0].dtype)
    first = "h" if len(gates) == 4 else "i"
    other = {"h": "i", "i": "h"}[first]
    for kind, side in (("ih", first), ("hh", other)):
        biases = [rest.pop(f"{cell}.{side}{gate}.bias", none) for gate in gates]
        rest[f"{owner}bias_{kind}_{layer}"] = np.concatenate(biases)


def _attention(rest: Tensors, owner: str) -> Tensors:
    """The three projections; the fourth under the name linen has for it."""
    parts: Tensors = {}
    for leaf, single in (("weight", "{}_proj_weight"), ("bias", "")):
        whole = rest.pop(f"{owner}in_proj_{leaf}", None)
        if whole is not None:
            split = np.split(whole, 3)
        elif single and f"{owner}q_proj_weight" in rest:
            split = [rest.pop(f"{owner}{single.format(p[0])}") for p in _INPUT]
        else:
            continue
        parts |= {f"{owner}{p}.{leaf}": x for p, x in zip(_INPUT, split, strict=True)}
    for leaf in ("weight", "bias"):
        if f"{owner}out_proj.{leaf}" in rest:
            parts[f"{owner}out.{leaf}"] = rest.pop(f"{owner}out_proj.{leaf}")
    return parts


def _fuse_attention(rest: Tensors, owner: str) -> None:
    for leaf in ("weight", "bias"):
        each = [rest.pop(f"{owner}{p}.{leaf}", None) for p in _INPUT]
        present = [x for x in each if x is not None]
        shapes = {x.shape for x in present}
        if leaf == "weight" and len(shapes) > 1:
            names = [f"{owner}{p[0]}_proj_weight" for p in _INPUT]
            rest |= dict(zip(names, present, strict=True))
        elif present:
            rest[f"{owner}in_proj_{leaf}"] = np.concatenate(present)
        if f"{owner}out.{leaf}" in rest:
            rest[f"{owner}out_proj.{leaf}"] = rest.pop(f"{owner}out.{leaf}")
