"""Quantization-aware training: floating weights that compute what few bits will."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from compiler.errors import ConversionError
from compiler.passes.base import Pass
from compiler.passes.quantize.arithmetic.activations import Activations
from compiler.passes.quantize.calibrate import Calibration, kept
from compiler.passes.quantize.dynamic import as_activations
from compiler.passes.quantize.physical import StaticScales, Stored, encoded
from compiler.passes.quantize.plan import Plan
from compiler.passes.quantize.rules import RuleSpec, as_rules
from compiler.passes.quantize.static import Measured, QuantizeStatic, as_arrays
from compiler.passes.quantize.storage.scheme import Scheme
from compiler.passes.quantize.training.trained import Trained
from compiler.passes.quantize.weights import QuantizeWeights, chosen_scheme
from mapping.core import register

if TYPE_CHECKING:
    from compiler.program import Program

_MODES = ("weights", "dynamic", "static")


@register("pass", "quantize_train")
@dataclasses.dataclass(frozen=True)
class QuantizeTrain(QuantizeWeights):
    r"""Trains weights in floating point for what they will be in few bits.

    $$ \hat W = s\,\mathrm{round}(\mathrm{clip}(W / s)), \qquad
       \frac{\partial L}{\partial W} = \frac{\partial L}{\partial \hat W} $$

    inside the range of the grid, and zero outside. The program keeps its leaves, at
    their paths, and computes the very numbers that the program of
    [`QuantizeWeights`][], [`QuantizeDynamic`][] or [`QuantizeStatic`][] will compute:
    weights are encoded at each call, and then used as those use them. [`convert`][]
    makes that program, equal bit for bit where both are compiled with their variables
    as arguments.

    Steps that are learned are leaves beside their weight, at `<path>/step`; so are the
    scales of static activations, at `<path>/input_scale`. They begin as what
    quantizing after training would use. Their gradient is that of learned step size
    quantization, slowed by $1 / \sqrt{n q}$ for $n$ numbers that share a step and codes
    up to $q$. Zero points and power-of-two scales are not learned but chosen from the
    weight at each call.

    Attributes:
        mode: `"weights"`, `"dynamic"` or `"static"`: what it trains for.
        activations: how they are rounded; None for `"weights"`.
        learned: whether steps and scales are leaves and trained too; else steps are
            chosen from the weight at each call, and scales of activations stay.
        observer: as of [`QuantizeStatic`][].
        scales: what was measured, for `"static"`.
        batches: what to measure on, for `"static"`.

    Raises:
        ValueError: if mode and activations do not go together.
        CalibrationError: for `"static"` without batches.
        ConversionError: if weights are in training already, and equations were
            rewritten since.

    Esser et al., 2019, https://arxiv.org/abs/1902.08153; straight-through derivatives
    after Bengio, Léonard & Courville, 2013, https://arxiv.org/abs/1308.3432.
    """

    mode: str = "weights"
    activations: Activations | None = None
    learned: bool = True
    observer: str = "minmax"
    scales: Measured | None = dataclasses.field(default=None, repr=False)
    batches: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in _MODES:
            raise ValueError(f"mode: expected one of {_MODES}, got {self.mode!r}.")
        if (self.mode == "weights") != (self.activations is None):
            raise ValueError(
                f"activations: expected {'none' if self.activations else 'some'} with "
                f"mode={self.mode!r}, got {self.activations}. Pass "
                "quantize.train(mode=..., activations=...) that go together."
            )
        if self.mode == "static":
            self._calibrated()

    @property
    def rounding(self) -> Activations | None:
        """How activations are rounded."""
        return self.activations

    @property
    def static(self) -> StaticScales:
        """What was measured, as arrays."""
        return as_arrays(self.scales)

    def decide(self, program: Program) -> Pass:
        """Measures activations if their scales are to be static."""
        made, rewritten = program.graph.encoded, encoded(program.graph) is None
        if made is not None and rewritten and isinstance(made.stored, Trained):
            raise ConversionError(
                "quantize.train: expected a program that is not in training yet, or as "
                "quantize.train() made it, got one that was rewritten since. Apply "
                "both one after the other, or say all in one with rules=."
            )
        super().decide(program)
        if self.mode != "static" or self.scales is not None:
            return self
        decided = self._calibrated().decide(program)
        return dataclasses.replace(
            self, scales=getattr(decided, "scales", None), batches=None
        )

    def storing(self, chosen: Plan) -> Stored:
        """How what was chosen is trained, and stored in the end."""
        trained = dict.fromkeys(chosen.encodings, self.learned)
        own = super().storing(chosen)
        return Trained(own.encodings, own.activations, own.scales, trained)

    def _calibrated(self) -> QuantizeStatic:
        """The pass that knows how to measure the same activations."""
        return QuantizeStatic(
            self.scheme,
            self.rules,
            activations=self.activations or Activations(per="tensor"),
            observer=self.observer,
            batches=self.batches,
        )


def train(
    dtype: str | Scheme = "int8",
    *,
    group: int | str | None = None,
    symmetric: bool = True,
    mode: str | None = None,
    activations: str | Activations | None = None,
    learned: bool = True,
    batches: Iterable[Any] | Calibration | None = None,
    observer: str = "minmax",
    rules: RuleSpec = (),
    skip: str | Sequence[str] = (),
    min_coverage: float = 0.0,
) -> QuantizeTrain:
    """Training that knows of the rounding to come; see [`QuantizeTrain`][].

    Args:
        dtype: of the weights: `"int8"`, `"int4"`, ...; or a [`Scheme`][].
        group: of the weights: `"channel"`, `"tensor"`, or how many rows share a scale.
        symmetric: without zero points, of weights; of activations say
            `activations=Activations(symmetric=False)`.
        mode: `"weights"`, `"dynamic"` or `"static"`; if not given, `"static"` with
            batches, `"dynamic"` with activations only, and else `"weights"`.
        activations: their dtype, or all of it as [`Activations`][].
        learned: whether the steps of the grids are trained too.
        batches: for `"static"`: inputs to measure activations on in the beginning.
        observer: how a range is made of what was seen.
        rules: a dict from globs to schemes, or a list of [`Rule`][]s.
        skip: globs of paths that are left as they are.
        min_coverage: the least share of bytes to be quantized.

    >>> import jax, jax.numpy as jnp, compiler as mc
    >>> variables, x = {"w": jnp.eye(64)}, jnp.ones((1, 64))
    >>> program = mc.trace(lambda v, x: x @ v["w"], variables, x)
    >>> training = train("int4")(program)
    >>> jax.tree.map(jnp.shape, training.variables)
    {'w': (64, 64), 'w/step': (2, 64)}
    >>> loss = lambda v: training.function(v, x).sum()
    >>> float(jax.grad(loss)(training.variables)["w"].sum())
    4096.0
    """
    if mode is None:
        given = "dynamic" if activations else "weights"
        mode = given if batches is None else "static"
    if mode != "weights" or activations is not None:
        per = "tensor" if mode == "static" else "token"
        activations = as_activations(activations or "int8", per, True)
    return QuantizeTrain(
        chosen_scheme(dtype, group, symmetric),
        as_rules(rules, skip),
        min_coverage,
        mode,
        activations,
        learned,
        observer,
        None,
        kept(batches),
    )
