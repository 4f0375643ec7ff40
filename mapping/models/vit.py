"""A transformer that reads an image as a sequence of patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping as Dict
from typing import Any, Self

import jax
import jax.numpy as jnp

from mapping.core import Mapping, describe
from mapping.errors import FieldError, ShapeMismatchError
from mapping.fields import check_count
from mapping.layers import Conv, Dense, Dropout, LayerNorm, Parameter
from mapping.layers.guard import check_extents, together
from mapping.model import Run
from mapping.models.transformer import Transformer
from mapping.registry import Example, register, spec


def _examples() -> Example:
    small = ViT(3, (4, 2), 2, features=4, heads=2, layers=1, hidden=6)
    return Example(small, (spec(2, 4, 2, 1),))


@register("model", "vit", examples=_examples)
@dataclasses.dataclass(frozen=True)
class ViT(Transformer):
    r"""An image is worth some words: one for each patch, and one that asks the class.

    $$ h = \mathrm{blocks}([c; x_1 E; \dots; x_N E] + P), \qquad
       y = \mathrm{norm}(h_0) W + b $$

    Inputs: images (\*batch, \*image, channels). Outputs: logits (\*batch, classes), or
    without `classes` the features (\*batch, features) of the class token.

    Params: `patches/kernel` (patch, patch, channels, features) and `bias`,
    `token/value` (features,), `positions`, `blocks`, `norm`, `head`.

    Dosovitskiy et al., "An image is worth 16x16 words", 2020,
    https://arxiv.org/abs/2010.11929.

    Attributes:
        classes: how many logits; None for features.
        image: height and width of the images.
        patch: height and width of a patch; it divides those of the image.

    Its other options are those of [`Transformer`][]; `norm` stands behind the blocks.

    Raises:
        FieldError: if patches do not fill the image.
        ShapeMismatchError: if an image is of another size.

    >>> model = ViT(10, (8, 8), 4, features=8, heads=2, layers=1)
    >>> images = jnp.ones((3, 8, 8, 1))
    >>> params = model.init(jax.random.key(0), images).params
    >>> params["positions"]["embedding"].shape, model(params, images).shape
    ((5, 8), (3, 10))
    """

    classes: int | None = 1000
    image: tuple[int, int] = (224, 224)
    patch: int = 16

    @classmethod
    def b16(cls, **changes: Any) -> Self:
        """ViT-B/16: 86,567,656 params for a thousand classes."""
        own: dict[str, Any] = {"features": 768, "heads": 12, "layers": 12}
        own |= {"activation": "gelu_exact", "norm": LayerNorm(epsilon=1e-6)}
        return cls(**{**own, **changes})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_extents(self.image, "ViT.image", "Use (224, 224).")
        check_count(self.patch, "ViT.patch")
        if self.classes is not None:
            check_count(self.classes, "ViT.classes")
        if len(self.image) != 2 or any(extent % self.patch for extent in self.image):
            raise FieldError(
                f"ViT.patch: expected a divisor of height and width {self.image}, got "
                f"{self.patch}. Resize the images, or choose another patch."
            )

    def parts(self) -> Dict[str, Mapping]:
        """Patches, the class token, places, blocks, a norm, and the head."""
        height, width = self.image
        square, count = (self.patch,) * 2, height * width // self.patch**2
        parts: dict[str, Mapping] = {
            "patches": Conv(self.features, square, strides=self.patch, padding="VALID"),
            "token": Parameter((self.features,)),
            **self.adding(count + 1),
            "drop": Dropout(self.rate),
            "blocks": self.stack(),
            "norm": self.norm,
        }
        return parts if self.classes is None else parts | {"head": Dense(self.classes)}

    def forward(self, run: Run, images: Any) -> jax.Array:
        """Takes images, channels last."""
        if getattr(images, "ndim", 0) < 3 or images.shape[-3:-1] != self.image:
            raise ShapeMismatchError(
                f"{run.ctx.where} (ViT): expected images [*batch, {self.image[0]}, "
                f"{self.image[1]}, channels], got {describe(images)}. Resize them, or "
                "give ViT their size."
            )
        x = run.patches(images)
        x = x.reshape(*x.shape[:-3], -1, self.features)
        x, token = together(x, run.token())
        token = jnp.broadcast_to(token, (*x.shape[:-2], 1, self.features))
        x = jnp.concatenate([token, x], axis=-2)
        if self.positions != "rotary":
            x = run.positions(x)
        x = run.norm(run.blocks(run.drop(x)))[..., 0, :]
        return x if self.classes is None else run.head(x)
