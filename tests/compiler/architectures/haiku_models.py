"""Networks in haiku."""

from __future__ import annotations

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from architectures.declared import architecture, filled, integers, normal

BATCH_NORM = {"create_scale": True, "create_offset": True, "decay_rate": 0.9}


def model(forward, *inputs):
    """A haiku function of params and state, with random numbers in both.

    Statistics that only training reads are left out: they belong to no formula here.
    """
    made = hk.without_apply_rng(hk.transform_with_state(forward))
    params, state = jax.eval_shape(made.init, jax.random.key(0), *inputs)
    state = filled(hk.data_structures.to_mutable_dict(state))
    read = {
        module: {name: value for name, value in own.items() if name == "average"}
        for module, own in state.items()
    }

    def apply(variables, *xs):
        whole = {m: {**state[m], **variables["state"][m]} for m in state}
        return made.apply(variables["params"], whole, *xs)[0]

    return apply, {"params": filled(params), "state": read}, inputs


def norm(name, x):
    layer = hk.BatchNorm(**BATCH_NORM, name=name)
    return layer(x, is_training=hk.running_init())


@architecture(
    "haiku",
    """
    first  8 | d1/*:-1 d2/w:0
    second 6 | d2/*:-1 l2/*:0 d3/w:0 | norm
    """,
)
def mlp(w):
    def forward(x):
        x = jax.nn.relu(hk.Linear(w["first"], name="d1")(x))
        x = hk.Linear(w["second"], name="d2")(x)
        x = hk.LayerNorm(-1, True, True, name="l2")(x)
        return hk.Linear(3, name="d3")(jax.nn.celu(x))

    return model(forward, normal(4, 5))


@architecture(
    "haiku",
    """
    stem    6 | stem/w:3 block/conv_0/w:2 shortcut_conv/w:2
    inner   8 | block/conv_0/w:3 batchnorm_0*/*:-1 block/conv_1/w:2
    stream  4 | block/conv_1/w:3 batchnorm_1*/*:-1 shortcut_conv/w:3
            | shortcut_batchnorm*/*:-1 head/w:0
    """,
)
def residual_v1(w):
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(w["stem"], 3, with_bias=False, name="stem")(x))
        short = hk.Conv2D(w["stream"], 1, 2, with_bias=False, name="shortcut_conv")(x)
        short = norm("shortcut_batchnorm", short)
        with hk.name_scope("block"):
            x = hk.Conv2D(w["inner"], 3, 2, with_bias=False, name="conv_0")(x)
            x = jax.nn.relu(norm("batchnorm_0", x))
            x = hk.Conv2D(w["stream"], 3, with_bias=False, name="conv_1")(x)
            x = norm("batchnorm_1", x)
        x = jax.nn.relu(x + short)
        return hk.Linear(3, name="head")(x.mean((1, 2)))

    return model(forward, normal(2, 8, 8, 3))


@architecture(
    "haiku",
    """
    stem   6 | stem/*:-1 depthwise_1/w:3 depthwise_1/b:0 batchnorm_1*/*:-1
           | pointwise_1/w:2
    first  8 | pointwise_1/*:-1 depthwise_2/w:3 depthwise_2/b:0 batchnorm_2*/*:-1
           | pointwise_2/w:2
    second 4 | pointwise_2/*:-1 head/w:0
    """,
)
def mobilenet_v1(w):
    def forward(x):
        x = jax.nn.relu(hk.Conv2D(w["stem"], 3, 2, name="stem")(x))
        for i, name in ((1, "first"), (2, "second")):
            x = hk.DepthwiseConv2D(1, 3, name=f"depthwise_{i}")(x)
            x = jax.nn.relu(norm(f"batchnorm_{i}", x))
            x = jax.nn.relu(hk.Conv2D(w[name], 1, name=f"pointwise_{i}")(x))
        return hk.Linear(3, name="head")(x.mean((1, 2)))

    return model(forward, normal(2, 8, 8, 3))


@architecture(
    "haiku",
    """
    stream 8  | embed/embeddings:1 places:1 l?/*:0 query/w:0 key/w:0 value/w:0
              | attention/linear/*:-1 f1/w:0 f2/*:-1 head/w:0 | norm
    heads  4  | query/*:-1 key/*:-1 value/*:-1 attention/linear/w:0
    qk     2  | query/*:-1 key/*:-1
    v      6  | value/*:-1 attention/linear/w:0
    hidden 10 | f1/*:-1 f2/w:0
    """,
)
def transformer(w):
    again = np.float32(np.sqrt(w["qk"] / w.full["qk"]))

    class Attention(hk.MultiHeadAttention):
        """Its scale stays that of the full size."""

        def _linear_projection(self, x, size, name=None):
            y = super()._linear_projection(x, size, name)
            return y * again if name == "query" else y

    def forward(tokens):
        x = hk.Embed(9, w["stream"], name="embed")(tokens)
        places = hk.get_parameter("places", (5, w["stream"]), init=jnp.zeros)
        x = x + places[None]
        y = hk.LayerNorm(-1, True, True, name="l1")(x)
        layer = Attention(
            w["heads"],
            w["qk"],
            value_size=w["v"],
            model_size=w["stream"],
            w_init=jnp.zeros,
            name="attention",
        )
        causal = jnp.tri(5, dtype=bool)[None, None]
        x = x + layer(y, y, y, causal)
        y = hk.Linear(w["hidden"], name="f1")(hk.RMSNorm(-1, name="l2")(x))
        x = x + hk.Linear(w["stream"], name="f2")(jax.nn.gelu(y))
        return hk.Linear(9, name="head")(x)

    return model(forward, integers(2, 5, below=9))


@architecture(
    "haiku",
    """
    first  8 | lstm/linear/*:-1 lstm/linear/w:0 w_i:0
    second 6 | w_i:1 w_h:1 w_h:0 gru/b:0 head/w:0
    """,
)
def recurrent(w):
    def forward(x):
        core = hk.DeepRNN(
            [hk.LSTM(w["first"], name="lstm"), hk.GRU(w["second"], name="gru")]
        )
        states = core.initial_state(x.shape[1])
        x, _ = hk.dynamic_unroll(core, x, states)
        return hk.Linear(3, name="head")(x[-1])

    return model(forward, normal(5, 2, 4))


@architecture(
    "haiku",
    """
    stream 6  | stem/*:-1 dilated_?/w:1 back_?/*:-1
    gate1  4  | dilated_1/*:-1 back_1/w:1 skip_1/w:1
    gate2  8  | dilated_2/*:-1 back_2/w:1 skip_2/w:1
    skip   10 | skip_?/*:-1 out/w:1
    """,
)
def wavenet(w):
    def forward(x):
        x = hk.Conv1D(w["stream"], 2, padding=hk.pad.causal, name="stem")(x)
        skips = 0.0
        for i in (1, 2):
            y = hk.Conv1D(
                2 * w[f"gate{i}"],
                2,
                rate=i,
                padding=hk.pad.causal,
                name=f"dilated_{i}",
            )(x)
            y = jnp.tanh(y[..., ::2]) * jax.nn.sigmoid(y[..., 1::2])
            x = x + hk.Conv1D(w["stream"], 1, name=f"back_{i}")(y)
            skips = skips + hk.Conv1D(w["skip"], 1, name=f"skip_{i}")(y)
        return hk.Conv1D(3, 1, name="out")(jax.nn.relu(skips))

    return model(forward, normal(2, 8, 3))


@architecture(
    "haiku",
    """
    first  6 | c1/w:3 c1/b:0 in1/*:1 c2/w:3
    second 8 | c2/w:2 c2/b:0 out/w:2
    """,
)
def channels_first(w):
    def forward(x):
        x = hk.Conv2D(w["first"], 3, data_format="NCHW", name="c1")(x)
        x = jax.nn.relu(hk.InstanceNorm(True, True, data_format="NCHW", name="in1")(x))
        x = hk.Conv2DTranspose(w["second"], 2, 2, data_format="NCHW", name="c2")(x)
        x = hk.AvgPool((1, 2, 2), (1, 2, 2), "VALID", channel_axis=1)(x)
        return hk.Conv2D(2, 1, data_format="NCHW", name="out")(jnp.tanh(x))

    return model(forward, normal(2, 3, 8, 8))


@architecture(
    "haiku",
    """
    hidden 8 | e1/*:-1 e2/w:0
    code   4 | e2/*:-1 d1/w:0 codes:1
    back   6 | d1/*:-1 d2/w:0
    count  8 | codes:0 | the nearest of them
    """,
)
def vector_quantized(w):
    """The nearest code in place of the encoding, passed straight through."""

    def forward(x):
        x = jax.nn.relu(hk.Linear(w["hidden"], name="e1")(x))
        x = hk.Linear(w["code"], name="e2")(x)
        codes = hk.get_parameter("codes", (w["count"], w["code"]), init=jnp.zeros)
        far = jnp.square(x[:, None] - codes[None]).sum(-1)
        nearest = codes[far.argmin(-1)]
        x = x + jax.lax.stop_gradient(nearest - x)
        x = jax.nn.relu(hk.Linear(w["back"], name="d1")(x))
        return hk.Linear(3, name="d2")(x), far.min(-1)

    return model(forward, normal(4, 5))
