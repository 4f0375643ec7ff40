"""The products of a graph whose activation is measured."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from compiler import jaxprs
from compiler.graph import Graph
from compiler.passes.quantize.calibrate.forms import Form, form_of
from compiler.passes.quantize.calibrate.trails import Trail, trails
from compiler.sites import WeightSite, keyed


class Watched(NamedTuple):
    """One product and its weight.

    Attributes:
        key: its name, by `sites.keyed`.
        site: the product.
        trail: how the weight came to it.
        form: the product as one of matrices, or None.
        why: why it is none.
    """

    key: str
    site: WeightSite
    trail: Trail
    form: Form | None
    why: str


def watched(graph: Graph) -> tuple[jaxprs.Jaxpr, list[Watched]]:
    """The products whose activation can be measured, in the order they run.

    Returns:
        The graph's jaxpr with an object of its own for each equation, and the
        products in it.
    """
    graph = dataclasses.replace(graph, jaxpr=jaxprs.distinct(graph.jaxpr))
    seen, found = trails(graph), []
    order = {place: i for i, place in enumerate(seen)}
    for key, site in keyed(graph).items():
        place = id(site.equation), site.operand
        leaf, trail = graph.leaves[site.leaf].spec, seen[place][site.leaf]
        if not _is_measured(site, leaf):
            continue
        form, why = form_of(site, trail, leaf.shape)
        found.append(Watched(key, site, trail, form, why))
    found.sort(key=lambda w: order[id(w.site.equation), w.site.operand])
    return graph.jaxpr, found


def _is_measured(site: WeightSite, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether it multiplies real numbers by a weight that is not rounded already."""
    if site.kind == "lookup" or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return False
    dtype = site.equation.invars[1 - site.operand].aval.dtype
    return not jnp.issubdtype(dtype, jnp.complexfloating)
