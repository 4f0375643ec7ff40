"""Networks in flax nnx."""

from __future__ import annotations

import jax
import numpy as np
from flax import nnx

from architectures.declared import architecture, filled, integers, normal


def split(make, *inputs):
    """An nnx module as a function of its state, with random numbers in it."""
    model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, state = nnx.split(model)

    def apply(state, *xs):
        return nnx.merge(graph, state)(*xs)

    return apply, filled(nnx.to_pure_dict(state)), inputs


class Module(nnx.Module):
    """Layers by name, and a function of them."""

    def __init__(self, forward, **layers):
        self.forward = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def __call__(self, *inputs):
        return self.forward(self, *inputs)


def conv(taken, given, rngs, size=3, **options):
    return nnx.Conv(taken, given, (size, size), rngs=rngs, **options)


def norm(features, rngs):
    return nnx.BatchNorm(features, use_running_average=True, rngs=rngs)


@architecture(
    "nnx",
    """
    first  6 | c1/*:-1 n1/*:0 c2/kernel:2
    second 8 | c2/*:-1 n2/*:0 d1/kernel:0
    hidden 4 | d1/*:-1 d2/kernel:0
    """,
)
def convolutional(w):
    def forward(m, x):
        x = nnx.relu(m.n1(m.c1(x)))
        x = nnx.max_pool(nnx.relu(m.n2(m.c2(x))), (2, 2), (2, 2))
        return m.d2(nnx.relu(m.d1(x.reshape(x.shape[0], -1))))

    def make(rngs):
        return Module(
            forward,
            c1=conv(3, w["first"], rngs, strides=2),
            n1=norm(w["first"], rngs),
            c2=conv(w["first"], w["second"], rngs),
            n2=norm(w["second"], rngs),
            d1=nnx.Linear(4 * w["second"], w["hidden"], rngs=rngs),
            d2=nnx.Linear(w["hidden"], 3, rngs=rngs),
        )

    return split(make, normal(2, 8, 8, 3))


@architecture(
    "nnx",
    """
    stream 8  | embed/embedding:1 l?/*:0 query/kernel:0 key/kernel:0 value/kernel:0
              | out/*:-1 gate/kernel:0 up/kernel:0 down/kernel:1 | norm
    heads  4  | query/*:-2 key/*:-2 value/*:-2 out/kernel:0
    qk     2  | query/*:-1 key/*:-1
    v      2  | value/*:-1 out/kernel:1
    hidden 10 | gate/kernel:1 up/kernel:1 down/kernel:0
    """,
)
def transformer(w):
    def forward(m, tokens):
        x = m.embed(tokens)
        mask = nnx.make_causal_mask(tokens)
        x = x + m.attention(m.l1(x), mask=mask)
        y = m.l2(x)
        x = x + m.down(nnx.silu(m.gate(y)) * m.up(y))
        return m.embed.attend(m.l3(x))

    def attend(query, key, value, **options):
        again = np.float32(np.sqrt(w["qk"] / w.full["qk"]))
        return nnx.dot_product_attention(query * again, key, value, **options)

    def make(rngs):
        d, hidden = w["stream"], w["hidden"]
        assert w["qk"] == w["v"]
        return Module(
            forward,
            embed=nnx.Embed(9, d, rngs=rngs),
            attention=nnx.MultiHeadAttention(
                w["heads"],
                d,
                w["heads"] * w["qk"],
                attention_fn=attend,
                decode=False,
                rngs=rngs,
            ),
            gate=nnx.Linear(d, hidden, use_bias=False, rngs=rngs),
            up=nnx.Linear(d, hidden, use_bias=False, rngs=rngs),
            down=nnx.Linear(hidden, d, use_bias=False, rngs=rngs),
            l1=nnx.LayerNorm(d, rngs=rngs),
            l2=nnx.RMSNorm(d, rngs=rngs),
            l3=nnx.RMSNorm(d, rngs=rngs),
        )

    return split(make, integers(2, 5, below=9))


@architecture(
    "nnx",
    """
    groups  2 | stem/*:-1 g1/*:0 a/kernel:2 b/*:-1 head/kernel:0
    within  4 | stem/*:-1 g1/*:0 a/kernel:2 b/*:-1 head/kernel:0 | norm
    inner   6 | a/*:-1 i1/*:0 b/kernel:2
    """,
)
def group_norm(w):
    outer = w["groups"] * w["within"]

    def forward(m, x):
        x = m.stem(x)
        y = m.b(nnx.elu(m.i1(m.a(nnx.relu(m.g1(x))))))
        return m.head((x + y).mean((1, 2)))

    def make(rngs):
        return Module(
            forward,
            stem=conv(3, outer, rngs),
            g1=nnx.GroupNorm(outer, w["groups"], rngs=rngs),
            a=conv(outer, w["inner"], rngs),
            i1=nnx.InstanceNorm(w["inner"], rngs=rngs),
            b=conv(w["inner"], outer, rngs),
            head=nnx.Linear(outer, 3, rngs=rngs),
        )

    return split(make, normal(2, 8, 8, 3))


@architecture(
    "nnx",
    """
    first  8 | rnn1/cell/dense_i/kernel:1 rnn1/cell/dense_h/*:-1
             | rnn1/cell/dense_h/kernel:0 rnn2/cell/dense_i/kernel:0
    second 6 | rnn2/cell/dense_i/*:-1 rnn2/cell/dense_h/*:-1
             | rnn2/cell/dense_h/kernel:0 head/kernel:0
    """,
)
def recurrent(w):
    def forward(m, x):
        x = m.rnn1(x, rngs=nnx.Rngs(0))
        return m.head(m.rnn2(x, rngs=nnx.Rngs(0))[:, -1])

    def layer(cell):
        made = nnx.RNN(cell)
        made.rngs = None
        return made

    def make(rngs):
        first = nnx.OptimizedLSTMCell(4, w["first"], rngs=rngs)
        second = nnx.GRUCell(w["first"], w["second"], rngs=rngs)
        return Module(
            forward,
            rnn1=layer(first),
            rnn2=layer(second),
            head=nnx.Linear(w["second"], 3, rngs=rngs),
        )

    return split(make, normal(2, 5, 4))


@architecture(
    "nnx",
    """
    hidden 8 | base/kernel:1 low1/lora_b:1 both/kernel:0
    rank   4 | low1/lora_a:1 low1/lora_b:0
    heads  4 | both/kernel:1 both/bias:0 back/kernel:0
    size   6 | both/kernel:2 both/bias:1 back/kernel:1
    """,
)
def low_rank_adapted(w):
    def forward(m, x):
        x = nnx.tanh(m.base(x) + m.low1(x))
        return m.back(nnx.relu(m.both(x)))

    def make(rngs):
        heads = w["heads"], w["size"]
        return Module(
            forward,
            base=nnx.Linear(5, w["hidden"], use_bias=False, rngs=rngs),
            low1=nnx.LoRA(5, w["rank"], w["hidden"], rngs=rngs),
            both=nnx.Einsum("bi,ihd->bhd", (w["hidden"], *heads), heads, rngs=rngs),
            back=nnx.LinearGeneral(heads, 3, axis=(-2, -1), rngs=rngs),
        )

    return split(make, normal(4, 5))


@architecture(
    "nnx",
    """
    stream 8 | embed/*:-1 l1/*:-1 f1/kernel:1 f2/*:-1 head/kernel:0 | norm
    hidden 6 | f1/*:-1 f2/kernel:1
    layers 4 | layers/*:0
    """,
)
def scanned_mlp(w):
    """Layers stacked by vmap over their init, run by scan."""

    def forward(m, x):
        def step(x, layer):
            return x + layer.f2(nnx.gelu(layer.f1(layer.l1(x)))), None

        graph, layers = nnx.split(m.layers)
        x = m.embed(x)
        x = jax.lax.scan(lambda c, s: step(c, nnx.merge(graph, s)), x, layers)[0]
        return m.head(x)

    def layer(rngs):
        return Module(
            None,
            l1=nnx.LayerNorm(w["stream"], rngs=rngs),
            f1=nnx.Linear(w["stream"], w["hidden"], rngs=rngs),
            f2=nnx.Linear(w["hidden"], w["stream"], rngs=rngs),
        )

    def make(rngs):
        return Module(
            forward,
            embed=nnx.Linear(4, w["stream"], rngs=rngs),
            layers=nnx.vmap(layer)(rngs.split(w["layers"])),
            head=nnx.Linear(w["stream"], 3, rngs=rngs),
        )

    return split(make, normal(5, 4))


@architecture(
    "nnx",
    """
    code    6 | e1/*:-1 e2/kernel:2
    stem    8 | e2/*:-1 n/*:0 u1/kernel:2
    decoded 4 | u1/*:-1 u2/kernel:2
    """,
)
def batch_norm_in_training(w):
    def forward(m, x):
        x = nnx.leaky_relu(m.e1(x))
        x = nnx.relu(m.n(m.e2(x)))
        moved = {"n": {"mean": m.n.mean[...], "var": m.n.var[...]}}
        return m.u2(nnx.relu(m.u1(x))), moved

    def make(rngs):
        return Module(
            forward,
            e1=conv(3, w["code"], rngs, 2, strides=2),
            e2=conv(w["code"], w["stem"], rngs, 2, strides=2),
            n=nnx.BatchNorm(w["stem"], rngs=rngs),
            u1=nnx.ConvTranspose(w["stem"], w["decoded"], (2, 2), (2, 2), rngs=rngs),
            u2=nnx.ConvTranspose(w["decoded"], 3, (2, 2), (2, 2), rngs=rngs),
        )

    return split(make, normal(2, 8, 8, 3))
