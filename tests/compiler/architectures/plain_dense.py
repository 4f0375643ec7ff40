"""Networks of dense layers in plain JAX, and the unusual ones among them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from architectures.declared import architecture, integers, normal, plain


@architecture(
    "plain",
    """
    first  8 | 0/w:0 0/b:0 1/w:1
    second 6 | 1/w:0 1/b:0 2/w:1
    """,
)
def transposed_weights(w):
    """`x @ w.T`, in a list of layers; the same function wherever a leaf lies."""

    def forward(layers, x):
        for layer in layers:
            x = jnp.tanh(x @ layer["w"].T + layer["b"][None])
        return x

    sizes = (5, w["first"], w["second"], 3)
    shapes = [{"w": (b, a), "b": (b,)} for a, b in itertools.pairwise(sizes)]
    return plain(forward, shapes, normal(4, 5))


@architecture(
    "plain",
    """
    field  6 | tables/0:1 tables/1:1 dense2:1 top1:0
    dense  8 | dense1:1 dense2:0
    hidden 4 | top1:1 top2:0
    """,
)
def recommender(w):
    """DLRM: embeddings of features and the inner products of all pairs."""

    def forward(p, x, tokens):
        x = jax.nn.relu(x @ p["dense1"]) @ p["dense2"]
        fields = [p["tables"][i][tokens[:, i]] for i in range(2)]
        z = jnp.stack([x, *fields], 1)
        pairs = jnp.einsum("bid,bjd->bij", z, z)
        i, j = jnp.tril_indices(3, -1)
        both = jnp.concatenate([x, pairs[:, i, j]], -1)
        return jax.nn.relu(both @ p["top1"]) @ p["top2"]

    field, dense, hidden = w["field"], w["dense"], w["hidden"]
    shapes = {
        **{"tables": [(7, field), (9, field)], "dense1": (5, dense)},
        **{"dense2": (dense, field), "top1": (field + 3, hidden), "top2": (hidden, 2)},
    }
    return plain(forward, shapes, normal(4, 5), integers(4, 2, below=7))


@architecture(
    "plain",
    """
    user   6 | user:1 user_out:0
    item   4 | items:1 item_out:0
    common 8 | user_out:1 item_out:1
    """,
)
def two_tower(w):
    """Likeness of two codes of unit length, of every user with every item."""

    def unit(x):
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def forward(p, x, tokens):
        user = unit(jax.nn.relu(x @ p["user"]) @ p["user_out"])
        item = unit(p["items"][tokens] @ p["item_out"])
        return jax.nn.log_softmax(user @ item.T * 4.0)

    user, item, common = w["user"], w["item"], w["common"]
    shapes = {"user": (5, user), "user_out": (user, common), "items": (9, item)}
    return plain(
        forward,
        shapes | {"item_out": (item, common)},
        normal(4, 5),
        integers(6, below=9),
    )


@architecture(
    "plain",
    """
    hyper  6 | h1:1 h2:0
    hidden 8 | h2:1 bias:0
    """,
)
def hypernetwork(w):
    """One net makes the weights of another."""

    def forward(p, task, x):
        made = jnp.tanh(task @ p["h1"]) @ p["h2"]
        hidden = p["bias"].shape[0]
        first, second = jnp.split(made, [4 * hidden])
        first, second = first.reshape(4, hidden), second.reshape(3, hidden)
        return jax.nn.relu(x @ first + p["bias"]) @ second.T

    hyper, hidden = w["hyper"], w["hidden"]
    shapes = {"h1": (5, hyper), "h2": (hyper, 7 * hidden), "bias": (hidden,)}
    return plain(forward, shapes, normal(5), normal(4, 4, seed=1))


@architecture(
    "plain",
    """
    hidden 6 | w1:1 b1:0 w2:0
    pieces 2 | w1:1 b1:0 | maximum
    """,
)
def maxout(w):
    def forward(p, x):
        x = x @ p["w1"] + p["b1"]
        return x.reshape(x.shape[0], w["hidden"], w["pieces"]).max(-1) @ p["w2"]

    hidden, both = w["hidden"], w["hidden"] * w["pieces"]
    return plain(
        forward, {"w1": (5, both), "b1": (both,), "w2": (hidden, 3)}, normal(4, 5)
    )


@jax.custom_vjp
def clipped(x):
    return jnp.clip(x, -1.0, 1.0)


clipped.defvjp(lambda x: (clipped(x), x), lambda x, g: (g * (1.0 + 0.1 * jnp.tanh(x)),))


@jax.custom_jvp
def swish(x, beta):
    return x * jax.nn.sigmoid(beta * x)


@swish.defjvp
def swish_jvp(primals, tangents):
    (x, beta), (dx, _) = primals, tangents
    s = jax.nn.sigmoid(beta * x)
    return x * s, (s + beta * x * s * (1.0 - s)) * dx


@jax.custom_vjp
def centred(x):
    return x - x.mean(-1, keepdims=True)


centred.defvjp(
    lambda x: (centred(x), None),
    lambda _, g: (g - 0.9 * g.mean(-1, keepdims=True),),
)


@jax.custom_jvp
def shares(x):
    return jax.nn.relu(x) / (1.0 + jnp.abs(x).sum(-1, keepdims=True))


shares.defjvps(
    lambda dx, share, x: dx * share - 0.9 * share * dx.sum(-1, keepdims=True)
)


@architecture(
    "plain",
    """
    first  8 | w1:1 w2:0 | a mean over them
    second 6 | w2:1 beta:0 w3:0
    """,
)
def custom_derivatives(w):
    def forward(p, x):
        x = swish(centred(clipped(x @ p["w1"])) @ p["w2"], p["beta"])
        return shares(x) @ p["w3"]

    first, second = w["first"], w["second"]
    shapes = {"w1": (5, first), "w2": (first, second), "beta": (second,)}
    return plain(
        lambda p, x: forward(p | {"beta": jnp.broadcast_to(p["beta"], (4, second))}, x),
        shapes | {"w3": (second, 3)},
        normal(4, 5),
    )


@architecture(
    "plain",
    """
    first  8 | w1:1 b1:0 w2:0
    second 6 | w2:1 b2:0 w3:0 density:0
    third  4 | w3:1 color:0
    waves  4 | w1:0 w2:0
    """,
)
def radiance_field(w):
    """NeRF-like: positions as waves, given again half-way; rays added up."""

    def octaves():
        if w["waves"] == w.full["waves"]:
            return 2.0 ** jnp.arange(w["waves"], dtype=jnp.float32)
        return 2.0 ** jnp.asarray(w.kept["waves"], jnp.float32)

    def waves(x):
        scaled = x[..., None] * octaves()
        parts = jnp.concatenate([jnp.sin(scaled), jnp.cos(scaled)], -1)
        return parts.reshape(*x.shape[:-1], -1)

    def forward(p, x):
        x = waves(x)
        y = jax.nn.relu(x @ p["w1"] + p["b1"])
        y = jax.nn.relu(jnp.concatenate([y, x], -1) @ p["w2"] + p["b2"])
        density = jax.nn.softplus(y @ p["density"])[..., 0]
        through = jnp.exp(-jnp.cumsum(density, -1))
        color = jax.nn.sigmoid(jax.nn.relu(y @ p["w3"]) @ p["color"])
        return (through[..., None] * color).sum(-2)

    first, second, third, given = w["first"], w["second"], w["third"], 6 * w["waves"]
    shapes = {
        **{"w1": (given, first), "b1": (first,), "w2": (first + given, second)},
        **{"b2": (second,), "density": (second, 1), "w3": (second, third)},
        "color": (third, 3),
    }
    return plain(forward, shapes, normal(2, 4, 3))


@architecture(
    "plain",
    """
    first  6 | w1:1 w2:0
    code   8 | w2:1 w3:0
    last   4 | w3:1 w4:0
    """,
)
def point_net(w):
    """The largest over points, and it beside every point again."""

    def forward(p, x):
        x = jax.nn.relu(x @ p["w1"]) @ p["w2"]
        whole = x.max(1)
        both = jnp.concatenate([x, jnp.repeat(whole[:, None], x.shape[1], 1)], -1)
        return jax.nn.relu(both @ p["w3"]) @ p["w4"]

    first, code, last = w["first"], w["code"], w["last"]
    shapes = {"w1": (3, first), "w2": (first, code), "w3": (2 * code, last)}
    return plain(forward, shapes | {"w4": (last, 2)}, normal(2, 7, 3))


@architecture(
    "plain",
    """
    inner 8 | phi1:1 phi2:0
    code  6 | phi2:1 rho1:0 spread:0
    last  4 | rho1:1 spread:1 rho2:0
    """,
)
def deep_sets(w):
    """Means, variances and sorted values over a set."""

    def forward(p, x):
        x = jnp.tanh(x @ p["phi1"]) @ p["phi2"]
        middle = jnp.sort(x, 1)[:, x.shape[1] // 2]
        y = (x.mean(1) + middle) @ p["rho1"] + x.var(1, ddof=1) @ p["spread"]
        return jax.nn.relu(y) @ p["rho2"]

    inner, code, last = w["inner"], w["code"], w["last"]
    shapes = {"phi1": (3, inner), "phi2": (inner, code), "rho1": (code, last)}
    shapes |= {"spread": (code, last), "rho2": (last, 2)}
    return plain(forward, shapes, normal(2, 7, 3))


@architecture(
    "plain",
    """
    hidden 6 | c1:1 s1:1 c2:0 s2:0
    basis1 4 | c1:2
    basis2 2 | c2:2
    """,
)
def kolmogorov_arnold(w):
    """Every edge its own function of a basis of bumps."""

    def layer(x, coefficients, slope, basis):
        number = jnp.arange(w.full[basis], dtype=jnp.float32)
        if w[basis] != w.full[basis]:
            number = number[w.kept[basis]]
        centres = number * (2.0 / (w.full[basis] - 1)) - 1.0
        bumps = jnp.exp(-jnp.square(x[..., None] - centres))
        return jnp.einsum("bik,iok->bo", bumps, coefficients) + jax.nn.silu(x) @ slope

    def forward(p, x):
        x = layer(x, p["c1"], p["s1"], "basis1")
        return layer(x, p["c2"], p["s2"], "basis2")

    hidden, one, two = w["hidden"], w["basis1"], w["basis2"]
    shapes = {"c1": (4, hidden, one), "s1": (4, hidden)}
    shapes |= {"c2": (hidden, 3, two), "s2": (hidden, 3)}
    return plain(forward, shapes, normal(4, 4))


@architecture(
    "plain",
    """
    hidden  6 | w1:2 b1:1 w2:1
    members 4 | w1:0 b1:0 w2:0 | mean over them
    """,
)
def ensemble(w):
    """Members side by side by vmap, their mean and spread."""

    def member(p, x):
        return jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"]

    def forward(p, x):
        y = jax.vmap(member, (0, None))(p, x)
        return y.mean(0), y.std(0)

    n, hidden = w["members"], w["hidden"]
    shapes = {"w1": (n, 5, hidden), "b1": (n, hidden), "w2": (n, hidden, 2)}
    return plain(forward, shapes, normal(4, 5))


@architecture(
    "plain",
    """
    body   8 | w1:1 b1:0 heads/*:0
    first  4 | left:0 core:0
    second 6 | right:0 core:1
    """,
)
def heads_and_bilinear(w):
    """Several outputs of one body, and a bilinear layer of two inputs."""

    def forward(p, x, y):
        body = jax.nn.relu(x @ p["w1"] + p["b1"])
        outs = {name: body @ head for name, head in p["heads"].items()}
        one, two = jnp.tanh(p["left"] @ y), jax.nn.relu(p["right"] @ y)
        return outs, jnp.einsum("i,ijo,j->o", one, p["core"], two)

    body, first, second = w["body"], w["first"], w["second"]
    shapes = {
        **{"w1": (5, body), "b1": (body,), "heads": {"a": (body, 2), "b": (body, 3)}},
        **{"left": (first, 4), "right": (second, 4), "core": (first, second, 2)},
    }
    return plain(forward, shapes, normal(4, 5), normal(4))


@architecture(
    "plain",
    """
    hidden 8 | w1:1 gain_positive:0 shift:0 w2:0
    second 4 | w2:1 w3:0
    """,
    unlike="the mask of a narrower layer is another mask",
)
def dropout_by_key(w):
    """Batch statistics of the batch itself, and dropout, as in training."""

    def forward(p, x, key):
        x = x @ p["w1"]
        x = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-3)
        x = jax.nn.relu(x * p["gain_positive"] + p["shift"])
        kept = jax.random.bernoulli(key, 0.7, x.shape)
        x = jnp.where(kept, x / 0.7, 0.0)
        x = x @ p["w2"]
        noise = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
        return (x + 0.1 * noise) @ p["w3"]

    hidden, second = w["hidden"], w["second"]
    shapes = {"w1": (5, hidden), "gain_positive": (hidden,), "shift": (hidden,)}
    shapes |= {"w2": (hidden, second), "w3": (second, 3)}
    return plain(forward, shapes, normal(6, 5), jax.random.key(2))
