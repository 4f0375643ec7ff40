"""Every registered mapping keeps the protocol, and the suite sees one that does not."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import mapping as mp
from mapping.core import Mapping, Variables
from mapping.errors import ConformanceError
from mapping.registry import entries
from mapping.testing import CLAIMS, check, check_example

SPEC = jax.ShapeDtypeStruct((2, 3), "float32")
UNTRIED = {"function", "value", "pass"}
OURS = [
    entry
    for entry in entries()
    if entry.kind not in UNTRIED and entry.target.__module__.startswith("mapping.")
]
TRIED = [
    pytest.param(example, id=f"{entry.label}-{number}")
    for entry in OURS
    for number, example in enumerate(entry.make_examples())
]


@pytest.mark.parametrize("example", TRIED)
def test_a_registered_mapping_keeps_every_claim(example):
    check_example(example)


def test_every_registered_mapping_has_an_example():
    bare = [e.label for e in OURS if isinstance(e.target, type) and not e.examples]
    assert bare == []


def test_every_stock_mapping_is_registered():
    known = {entry.target for entry in OURS}
    for kind in ("layers", "losses", "metrics", "augment", "combinators", "models"):
        package = getattr(mp, kind)
        for name in dir(package):
            value = getattr(package, name)
            if isinstance(value, type) and issubclass(value, Mapping):
                assert value in known | UNNAMED, f"{kind}.{name} is not registered"


# A base to subclass; a step whose state is optax's own tuples.
UNNAMED = {mp.losses.Loss, mp.models.GanStep}


# --- the suite is worth something: a mapping that breaks one claim is told which ---


class Broken(Mapping):
    def init(self, key, x):
        return Variables({"scale": jnp.ones(x.shape[-1:])})

    def apply(self, variables, x, *, ctx):
        try:
            scale = jnp.broadcast_to(variables.params["scale"], x.shape)
            return self.compute(scale, x, variables, ctx)
        except KeyError:
            raise mp.errors.MissingVariablesError(f"{ctx.where}: no params") from None

    def compute(self, scale, x, variables, ctx):
        return x * scale, variables.state


def broken(claim, batched=True):
    def mark(cls):
        cls = mp.register("layer", f"broken_{cls.__name__.lower()}")(
            dataclasses.dataclass(frozen=True)(cls)
        )
        CASES.append(pytest.param(cls(), claim, id=claim))
        globals()[cls.__name__] = cls
        return cls

    return mark


CASES = []


@broken("init_agrees_with_its_shapes")
class Slashed(Broken):
    def init(self, key, x):
        return Variables({"scale": jnp.ones(x.shape[-1:]), "a/b": jnp.ones(())})


@broken("jit_equals_eager")
class Eager(Broken):
    def compute(self, scale, x, variables, ctx):
        return x * scale * (1 if isinstance(x, jax.core.Tracer) else 2), {}


@broken("vmap_equals_a_loop")
class Whole(Broken):
    def compute(self, scale, x, variables, ctx):
        return scale * careless(x), variables.state


@jax.custom_batching.custom_vmap
def careless(x):
    return x


@careless.def_vmap
def doubled(size, batched, x):
    return 2 * x, batched[0]


@broken("gradients_agree_with_differences")
class Straight(Broken):
    def compute(self, scale, x, variables, ctx):
        return scale * x + jax.lax.stop_gradient(jnp.sin(x)), variables.state


@broken("bfloat16_stays_bfloat16")
class Promotes(Broken):
    def compute(self, scale, x, variables, ctx):
        return (x * scale).astype(jnp.promote_types(x.dtype, jnp.float32)), {}


@broken("equal_ones_are_traced_once")
class Lonely(Broken):
    def __eq__(self, other):
        return self is other

    def __hash__(self):
        return id(self)


@broken("equal_ones_are_equal")
class Salted(Broken):
    def __hash__(self):
        return id(self)


@broken("state_moves_only_in_training")
class Restless(Broken):
    def init(self, key, x):
        return Variables({"scale": jnp.ones(x.shape[-1:])}, {"count": jnp.zeros(())})

    def compute(self, scale, x, variables, ctx):
        return x * scale, {"count": variables.state["count"] + 1}


@broken("leading_axes_are_batch")
class FirstAxis(Broken):
    def compute(self, scale, x, variables, ctx):
        return (x - x.mean(0, keepdims=True)) * scale, variables.state


@broken("randomness_needs_a_key")
class Silent(Broken):
    def compute(self, scale, x, variables, ctx):
        if ctx.key is None or not ctx.train:
            return x * scale, variables.state
        noise = jax.random.normal(ctx.rng(), x.shape, x.dtype)
        return x * scale + noise, variables.state


@broken("missing_variables_are_told")
class Forgiving(Broken):
    def apply(self, variables, x, *, ctx):
        scale = variables.params.get("scale", jnp.ones((), x.dtype))
        return x * jnp.broadcast_to(scale, x.shape), {}


@pytest.mark.parametrize(("mapping", "claim"), CASES)
def test_a_broken_claim_is_named(mapping, claim):
    with pytest.raises(ConformanceError) as caught:
        check(mapping, SPEC)
    said = [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]]
    assert claim in said
    assert len(set(said) & set(CLAIMS)) <= 2


def test_every_claim_has_a_mapping_that_breaks_it():
    assert {case.values[1] for case in CASES} == set(CLAIMS)


def test_a_sound_mapping_of_a_user_passes_with_one_call():
    check(Sound(2), SPEC)
    mp.register("layer", "sound")(Sound)
    check(Sound(2), SPEC)


@dataclasses.dataclass(frozen=True)
class Plain(Mapping):
    """As the README writes one: nothing is guarded, a weak dtype slips in."""

    start: float = 1.0

    def init(self, key, x):
        return Variables({"scale": jnp.full(x.shape[-1:], self.start)})

    def apply(self, variables, x, *, ctx):
        return x * variables.params["scale"][None], variables.state


def test_a_mapping_as_the_readme_writes_one_passes():
    check(Plain(2.0), SPEC, batched=False)


@dataclasses.dataclass(frozen=True)
class Sound(Broken):
    power: int = 1

    def compute(self, scale, x, variables, ctx):
        return x * scale**self.power, variables.state


def test_one_that_holds_what_is_not_registered_is_told_how():
    held = mp.Serial(own=Unnamed())
    with pytest.raises(ConformanceError, match=r"Unnamed is not registered\. Put @"):
        check(held, SPEC)


@dataclasses.dataclass(frozen=True)
class Unnamed(Broken):
    pass
