"""Loops, branches, experts and graphs in plain JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from architectures.declared import architecture, integers, normal, plain


@architecture(
    "plain",
    """
    embed  4 | embed:1 w:0
    hidden 8 | w:1 u:0 u:1 bias:0 out:0
    """,
)
def elman(w):
    def forward(p, tokens):
        def step(h, token):
            h = jnp.tanh(p["embed"][token] @ p["w"] + h @ p["u"] + p["bias"])
            return h, h @ p["out"]

        start = jnp.zeros((tokens.shape[0], w["hidden"]))
        return jax.lax.scan(step, start, tokens.T)[1]

    embed, hidden = w["embed"], w["hidden"]
    shapes = {"embed": (9, embed), "w": (embed, hidden), "u": (hidden, hidden)}
    shapes |= {"bias": (hidden,), "out": (hidden, 3)}
    return plain(forward, shapes, integers(2, 5, below=9))


@architecture(
    "plain",
    """
    input  4 | read:1 fused:0
    hidden 6 | fused:1 bias:0 fused:0 out:0
    """,
)
def fused_lstm(w):
    """All gates from one matrix of the input and the state together."""

    def forward(p, x):
        def step(state, x):
            h, c = state
            gates = jnp.concatenate([x, h], -1) @ p["fused"] + p["bias"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        x = jnp.swapaxes(x @ p["read"], 0, 1)
        zeros = jnp.zeros((x.shape[1], w["hidden"]))
        return jax.lax.scan(step, (zeros, zeros), x, unroll=2)[1] @ p["out"]

    given, hidden = w["input"], w["hidden"]
    shapes = {"read": (5, given), "fused": (given + hidden, 4 * hidden)}
    shapes |= {"bias": (4 * hidden,), "out": (hidden, 3)}
    return plain(forward, shapes, normal(2, 6, 5))


@architecture(
    "plain",
    """
    stream 6  | embed:1 in:0 out:1 head:0
    inner  8  | in:1 taps:1 b:0 c:0 dt:0 dt:1 a:0 skip:0 out:0
    state  4  | a:1 b:1 c:1
    """,
)
def selective_state_space(w):
    """A Mamba-like block: a diagonal recurrence by an associative scan."""

    def forward(p, x):
        x = x @ p["embed"]
        value, gate = jnp.split(x @ p["in"], 2, axis=-1)
        past = jnp.pad(value, ((0, 0), (2, 0), (0, 0)))
        length = x.shape[1]
        value = jax.nn.silu(
            sum(past[:, i : i + length] * p["taps"][i] for i in range(3))
        )
        dt = jax.nn.softplus(value @ p["dt"])
        decay = jnp.exp(-dt[..., None] * jnp.exp(p["a"]))
        drive = (dt * value)[..., None] * (value @ p["b"])[:, :, None]

        def combine(left, right):
            return left[0] * right[0], right[0] * left[1] + right[1]

        states = jax.lax.associative_scan(combine, (decay, drive), axis=1)[1]
        y = jnp.einsum("btds,bts->btd", states, value @ p["c"]) + value * p["skip"]
        return (x + (y * jax.nn.silu(gate)) @ p["out"]) @ p["head"]

    d, inner, state = w["stream"], w["inner"], w["state"]
    shapes = {
        **{"embed": (4, d), "in": (d, 2 * inner), "taps": (3, inner), "head": (d, 3)},
        **{"dt": (inner, inner), "a": (inner, state), "b": (inner, state)},
        **{"c": (inner, state), "skip": (inner,), "out": (inner, d)},
    }
    return plain(forward, shapes, normal(2, 6, 4))


@architecture(
    "plain",
    """
    state 8 | inject:1 w:0 w:1 bias:0 out:0
    """,
)
def equilibrium(w):
    """DEQ: iterated until it moves no more; the step adapts by a branch."""

    def forward(p, x):
        given = x @ p["inject"]

        def step(carry):
            z, _, count = carry
            new = jnp.tanh(z @ p["w"] * 0.4 + given + p["bias"])
            new = jax.lax.cond(
                count < 3, lambda z, n: n, lambda z, n: 0.5 * z + 0.5 * n, z, new
            )
            return new, jnp.square(new - z).sum(), count + 1

        def go_on(carry):
            return (carry[1] > 1e-12) & (carry[2] < 12)

        start = jnp.zeros_like(given), jnp.float32(1.0), 0
        z = jax.lax.while_loop(go_on, step, start)[0]
        return z @ p["out"]

    size = w["state"]
    shapes = {"inject": (5, size), "w": (size, size), "bias": (size,), "out": (size, 3)}
    return plain(forward, shapes, normal(4, 5))


@architecture(
    "plain",
    """
    state  6 | embed:1 rhs1:0 rhs2:1 out:0
    hidden 8 | rhs1:1 bias:0 rhs2:0
    """,
)
def neural_ode(w):
    """Runge-Kutta steps of a learned vector field, in a loop."""

    def forward(p, x):
        def field(z):
            return jnp.tanh(z @ p["rhs1"] + p["bias"]) @ p["rhs2"]

        def step(_, z):
            k1 = field(z)
            k2 = field(z + 0.1 * k1)
            return z + 0.2 * k2

        return jax.lax.fori_loop(0, 4, step, x @ p["embed"]) @ p["out"]

    state, hidden = w["state"], w["hidden"]
    shapes = {"embed": (5, state), "rhs1": (state, hidden), "bias": (hidden,)}
    return plain(
        forward, shapes | {"rhs2": (hidden, state), "out": (state, 3)}, normal(4, 5)
    )


@architecture(
    "plain",
    """
    stream  6 | embed:1 gate:0 up:1 down:2 head:0
    experts 4 | gate:1 up:0 down:0 | softmax
    hidden  8 | up:2 down:1
    """,
)
def mixture_of_all_experts(w):
    def forward(p, x):
        x = x @ p["embed"]
        weights = jax.nn.softmax(x @ p["gate"])
        y = jax.nn.relu(jnp.einsum("bd,edh->beh", x, p["up"]))
        return (x + jnp.einsum("beh,ehd,be->bd", y, p["down"], weights)) @ p["head"]

    d, experts, hidden = w["stream"], w["experts"], w["hidden"]
    shapes = {
        **{"embed": (5, d), "gate": (d, experts), "up": (experts, d, hidden)},
        **{"down": (experts, hidden, d), "head": (d, 3)},
    }
    return plain(forward, shapes, normal(4, 5))


@architecture(
    "plain",
    """
    stream  6 | embed:1 gate:0 up:1 down:2 head:0
    experts 6 | gate:1 up:0 down:0 | the best two of them
    hidden  8 | up:2 down:1
    """,
)
def mixture_of_two_experts(w):
    """Routed by top-k: the choice is a number among those that are left."""

    def forward(p, x):
        x = x @ p["embed"]
        best, chosen = jax.lax.top_k(x @ p["gate"], 2)
        up, down = p["up"][chosen], p["down"][chosen]
        y = jax.nn.relu(jnp.einsum("bd,bkdh->bkh", x, up))
        y = jnp.einsum("bkh,bkhd->bkd", y, down)
        return (x + (y * jax.nn.softmax(best)[..., None]).sum(1)) @ p["head"]

    d, experts, hidden = w["stream"], w["experts"], w["hidden"]
    shapes = {
        **{"embed": (5, d), "gate": (d, experts), "up": (experts, d, hidden)},
        **{"down": (experts, hidden, d), "head": (d, 3)},
    }
    return plain(forward, shapes, normal(4, 5))


@architecture(
    "plain",
    """
    node    6 | embed:1 send:0 take:0 self:0
    message 8 | send:1 take:1 back:0
    second  4 | back:1 self:1 head:0
    """,
)
def graph_messages(w):
    """Messages along edges, summed and averaged at their ends."""

    def forward(p, x, senders, receivers):
        n = x.shape[0]
        x = jax.nn.relu(x @ p["embed"])
        message = jax.nn.relu(x[senders] @ p["send"] + x[receivers] @ p["take"])
        total = jax.ops.segment_sum(message, receivers, n)
        count = jnp.zeros(n).at[receivers].add(1.0)
        x = jnp.tanh(total / (count[:, None] + 1.0) @ p["back"] + x @ p["self"])
        return x @ p["head"], jax.ops.segment_max(x[senders], receivers, n) @ p["head"]

    node, message, second = w["node"], w["message"], w["second"]
    shapes = {
        **{"embed": (4, node), "send": (node, message), "take": (node, message)},
        **{"back": (message, second), "self": (node, second), "head": (second, 3)},
    }
    senders, receivers = integers(9, below=5), integers(9, below=5, seed=1)
    receivers = jnp.concatenate([receivers[:4], jnp.arange(5, dtype=jnp.int32)])
    return plain(forward, shapes, normal(5, 4), senders, receivers)


@architecture(
    "plain",
    """
    heads 4 | w:1 left:0 right:0 head:0
    size  6 | w:2 left:1 right:1 head:1
    """,
)
def graph_attention(w):
    """GAT: a softmax over the edges into each node, by segments."""

    def forward(p, x, senders, receivers):
        n = x.shape[0]
        x = jnp.einsum("ni,ihd->nhd", x, p["w"])
        score = (x * p["left"][None]).sum(-1)[senders]
        score = score + (x * p["right"][None]).sum(-1)[receivers]
        score = jax.nn.leaky_relu(score, 0.2)
        top = jax.ops.segment_max(score, receivers, n)
        score = jnp.exp(score - top[receivers])
        whole = jax.ops.segment_sum(score, receivers, n)
        share = score / whole[receivers]
        x = jax.ops.segment_sum(share[..., None] * x[senders], receivers, n)
        return jnp.einsum("nhd,hdo->no", jax.nn.elu(x), p["head"])

    heads, size = w["heads"], w["size"]
    shapes = {"w": (4, heads, size), "left": (heads, size), "right": (heads, size)}
    ends = jnp.concatenate(
        [integers(4, below=5, seed=1), jnp.arange(5, dtype=jnp.int32)]
    )
    return plain(
        forward,
        shapes | {"head": (heads, size, 3)},
        normal(5, 4),
        integers(9, below=5),
        ends,
    )


@architecture(
    "plain",
    """
    width 6 | in:1 in_bias:0 ws/0:0 ws/0:1 ws/1:0 ws/1:1 out:0
    """,
)
def early_exit(w):
    """A switch chooses which layer follows."""

    def forward(p, x, which):
        x = jax.nn.relu(x @ p["in"] + p["in_bias"])
        branches = [
            lambda x: jnp.tanh(x @ p["ws"][0]),
            lambda x: jax.nn.relu(x @ p["ws"][1]),
            lambda x: x,
        ]
        return jax.lax.switch(which, branches, x) @ p["out"]

    d = w["width"]
    shapes = {"in": (5, d), "in_bias": (d,), "ws": [(d, d), (d, d)], "out": (d, 3)}
    return plain(forward, shapes, normal(4, 5), jnp.int32(1))


@architecture(
    "plain",
    """
    size 6 | items:1 query:1 out:0
    """,
)
def memory_lookup(w):
    """Writes rows into a memory at given places and reads by likeness."""

    def forward(p, x, places):
        memory = jnp.zeros((7, w["size"])).at[places].set(x @ p["items"])
        memory = jax.lax.dynamic_update_slice(memory, memory[:2] * 2.0, (5, 0))
        weights = jax.nn.softmax(x @ p["query"] @ memory.T)
        recent = jax.lax.dynamic_slice_in_dim(memory, places[0], 2, 0)
        return (weights @ memory) @ p["out"] + recent.sum(0)[None] @ p["out"]

    size = w["size"]
    shapes = {"items": (4, size), "query": (4, size), "out": (size, 3)}
    return plain(
        forward, shapes, normal(4, 4), jnp.asarray(np.array([1, 4, 2, 0], "i4"))
    )


@architecture(
    "plain",
    """
    primary 4 | votes:0 read:1 read_bias:0
    size    6 | votes:3 read:2 read_bias:1
    given   8 | votes:2 out:1
    """,
)
def capsules(w):
    """Routing by agreement: three rounds between capsules of two layers."""

    def squash(x):
        size = jnp.square(x).sum(-1, keepdims=True)
        return x * size / (1.0 + size) / jnp.sqrt(size + 1e-7)

    def forward(p, x):
        low = squash(jnp.einsum("bi,ins->bns", x, p["read"]) + p["read_bias"])
        votes = jnp.einsum("bns,nmos->bnmo", low, p["votes"])
        logits = jnp.zeros(votes.shape[:3])
        for _ in range(3):
            share = jax.nn.softmax(logits, -1)
            high = squash(jnp.einsum("bnm,bnmo->bmo", share, votes))
            logits = logits + jnp.einsum("bnmo,bmo->bnm", votes, high)
        return jnp.einsum("bmo,mo->bm", high, p["out"])

    primary, size, given = w["primary"], w["size"], w["given"]
    shapes = {
        **{"read": (5, primary, size), "read_bias": (primary, size)},
        **{"votes": (primary, 3, given, size), "out": (3, given)},
    }
    return plain(forward, shapes, normal(2, 5))
