"""The micro-models of `prune_rivals.py` as torch modules.

The last layer is called `out` and keeps its outputs. `heads` names the layers that
Torch-Pruning is told the number of heads of; with `whole` it removes heads and keeps
their size, as in its example for language models. Where zeros are no removal, as the
norm or mean of fewer numbers is another, a model takes `share`, by which its widths are
divided.
"""

import torch
import torch.nn.functional as F
from torch import nn

MODELS = {}


def model(name, heads=None, whole=False):
    """Enters a module class under the name of its case."""

    def enter(cls):
        MODELS[name] = cls
        cls.heads, cls.whole = heads or {}, whole
        return cls

    return enter


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


@model("convolutions and batch norm")
class ConvNormConv(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.out = conv(3, 16), nn.BatchNorm2d(16), conv(16, 5)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.a(x))))


@model("residual connection")
class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(16, 16), conv(16, 16)
        self.out = conv(16, 5)

    def forward(self, x):
        x = self.a(x)
        return self.out(F.relu(x + self.c(F.relu(self.b(x)))))


@model("concatenation of branches")
class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), conv(3, 8, 1), conv(16, 12)
        self.out = conv(36, 5)

    def forward(self, x):
        a = F.relu(self.a(x))
        return self.out(torch.cat([a, F.relu(self.b(x)), F.relu(self.c(a))], 1))


@model("squeeze and excite")
class SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.down, self.up = conv(3, 16), conv(16, 4, 1), conv(4, 16, 1)
        self.out = conv(16, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return self.out(x * torch.sigmoid(gate))


@model("SwiGLU of two projections")
class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up = nn.Linear(16, 32), nn.Linear(16, 32)
        self.out = nn.Linear(32, 16)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.up(x))


@model("depthwise convolution")
class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 16, groups=16), conv(16, 5)

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@model("grouped convolution")
class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 16, groups=4), conv(16, 5)

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@model("flattened image into a dense layer")
class Flatten(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = conv(3, 16), nn.Linear(16 * 64, 5)

    def forward(self, x):
        return self.out(F.relu(self.a(x)).flatten(1))


@model("transposed convolution")
class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 16), nn.ConvTranspose2d(16, 12, 2, 2)
        self.out = conv(12, 5)

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@model("channels last through dense layers")
class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.out = conv(16, 5)

    def forward(self, x):
        x = self.a(x)
        y = self.c(F.gelu(self.b(x.permute(0, 2, 3, 1))))
        return self.out(F.relu(x + y.permute(0, 3, 1, 2)))


def attend(q, k, v):
    """Attention over (batch, heads, tokens, size)."""
    weights = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1)
    return (weights @ v).transpose(1, 2).flatten(2)


@model("attention, heads by a view", heads={"q": 4, "k": 4, "v": 4})
class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 32) for _ in range(3))
        self.out = nn.Linear(32, 16)

    def forward(self, x):
        b, t, _ = x.shape
        parts = [
            f(x).view(b, t, 4, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        ]
        return self.out(attend(*parts))


@model("attention from one fused projection", heads={"qkv": 4})
class Fused(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 96), nn.Linear(32, 16)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 4, -1).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v))


@model("a layer used twice")
class Reused(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = (
            nn.Linear(16, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 5),
        )

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.b(F.relu(self.a(x)))))))


@model("windows over rolled tokens")
class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = (
            nn.Linear(16, 32),
            nn.Linear(32, 24),
            nn.Linear(24, 5),
        )

    def forward(self, x):
        b = x.shape[0]
        y = torch.roll(self.a(x), 1, 1).reshape(b * 3, 2, -1)
        y = F.relu(self.b(F.relu(y - y.mean(1, keepdim=True))))
        return self.out(torch.roll(y.reshape(b, 6, -1), -1, 1))


@model("group norm")
class GroupNorm(nn.Module):
    def __init__(self, share=1):
        super().__init__()
        n = 16 // share
        self.a, self.norm, self.out = conv(3, n), nn.GroupNorm(4, n), conv(n, 5)

    def forward(self, x):
        return self.out(F.relu(self.norm(self.a(x))))


@model("layer norm before a residual branch")
class LayerNorm(nn.Module):
    def __init__(self, share=1):
        super().__init__()
        n = 32 // share
        self.a, self.norm, self.b = nn.Linear(16, n), nn.LayerNorm(n), nn.Linear(n, n)
        self.out = nn.Linear(n, 5)

    def forward(self, x):
        x = self.a(x)
        return self.out(x + F.relu(self.b(self.norm(x))))


@model("channel shuffle")
class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 16), conv(16, 5, groups=1)

    def forward(self, x):
        x = F.relu(self.a(x))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.out(F.relu(self.b(x)))


@model("GLU by chunk of one projection")
class ChunkedGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(16, 64), nn.Linear(32, 5)

    def forward(self, x):
        gate, up = self.a(x).chunk(2, -1)
        return self.out(F.silu(gate) * up)


@model("pixel shuffle")
class PixelShuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 32), conv(8, 5)

    def forward(self, x):
        return self.out(F.relu(F.pixel_shuffle(self.b(F.relu(self.a(x))), 2)))


@model("depthwise convolution with multiplier 2")
class Multiplier(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), conv(16, 32, groups=16), conv(32, 5)

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@model("dense layer viewed as an image")
class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 32 * 16), conv(32, 12), conv(12, 5)

    def forward(self, x):
        y = F.relu(self.a(x[:, 0])).view(-1, 32, 4, 4)
        return self.out(F.relu(self.b(y)))


class Llama(nn.Module):
    """What both kinds of attention of language models begin and end with."""

    def __init__(self, shared):
        super().__init__()
        self.a, self.q = nn.Linear(16, 24), nn.Linear(24, 32)
        self.k, self.v = nn.Linear(24, 32 // shared), nn.Linear(24, 32 // shared)
        self.o, self.out = nn.Linear(32, 24), nn.Linear(24, 5)

    def placed(self, q, k, v):
        """Queries, keys and values with positions, or repeated."""
        return q, k, v

    def forward(self, x):
        x = self.a(x)
        layers = self.q, self.k, self.v
        parts = [f(x).view(*x.shape[:2], -1, 8).transpose(1, 2) for f in layers]
        return self.out(x + self.o(attend(*self.placed(*parts))))


@model("grouped-query attention by expand", heads={"q": 4, "k": 2, "v": 2}, whole=True)
class GroupedQuery(Llama):
    def __init__(self):
        super().__init__(2)

    def placed(self, q, k, v):
        b, heads, t, size = k.shape
        k, v = (y[:, :, None].expand(b, heads, 2, t, size) for y in (k, v))
        return q, *(y.reshape(b, heads * 2, t, size) for y in (k, v))


@model("rotary positions, halves rotated", heads={"q": 4, "k": 4, "v": 4}, whole=True)
class Rotary(Llama):
    def __init__(self):
        super().__init__(1)

    def placed(self, q, k, v):
        angle = torch.arange(q.shape[2])[:, None] / 100 ** (torch.arange(4) / 4)
        cos, sin = torch.cos(angle).repeat(1, 2), torch.sin(angle).repeat(1, 2)
        q, k = (
            y * cos + torch.cat([-y[..., 4:], y[..., :4]], -1) * sin for y in (q, k)
        )
        return q, k, v


@model("einsum over weights")
class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.u = (
            nn.Parameter(torch.empty(16, 4, 8)),
            nn.Parameter(torch.empty(4, 8, 16)),
        )
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        hidden = F.relu(torch.einsum("btd,dhe->bthe", x, self.w))
        return self.out(torch.einsum("bthe,hed->btd", hidden, self.u))


@model("one matrix used as it is and transposed")
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.w = nn.Linear(16, 24), nn.Linear(24, 32, bias=False)
        self.b, self.out = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        y = F.relu(self.w(F.relu(self.a(x))))
        return self.out(F.relu(self.b(F.linear(y, self.w.weight.t()))))


@model("embedding tied to the logits")
class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.b = nn.Embedding(11, 24), nn.Linear(24, 24)
        self.out = nn.Identity()

    def forward(self, tokens):
        y = self.table(tokens)
        return self.out(F.linear(y + F.relu(self.b(y)), self.table.weight))


@model("slices of channels")
class Slices(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 32), conv(16, 16), conv(32, 5)

    def forward(self, x):
        y = F.relu(self.a(x))
        first, second = y[:, :16], y[:, 16:]
        return self.out(torch.cat([F.relu(self.b(first)), second], 1))


@model("mean and maximum over channels")
class OverChannels(nn.Module):
    def __init__(self, share=1):
        super().__init__()
        n = 16 // share
        self.a, self.b, self.out = conv(3, n), conv(2, 1), conv(n, 5)

    def forward(self, x):
        x = F.relu(self.a(x))
        both = [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        return self.out(x * torch.sigmoid(self.b(torch.cat(both, 1))))


@model("product of features with features")
class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(6, 5)

    def forward(self, x):
        return self.out(F.relu(self.a(x) @ self.b(x).transpose(1, 2)))


@model("LSTM between dense layers")
class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.lstm = nn.Linear(16, 24), nn.LSTM(24, 32, batch_first=True)
        self.out = nn.Linear(32, 5)

    def forward(self, x):
        return self.out(self.lstm(F.relu(self.a(x)))[0])


@model("split at written sizes")
class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 24), conv(8, 16), conv(16, 16)
        self.out = conv(16, 5)

    def forward(self, x):
        one, two = torch.split(F.relu(self.a(x)), [8, 16], 1)
        return self.out(F.relu(self.b(one) + self.c(two)))


@model("patches merged by strided slices")
class Merging(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.out = conv(3, 16), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x):
        x = F.relu(self.a(x)).permute(0, 2, 3, 1)
        parts = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.out(F.relu(self.b(torch.cat(parts, -1))))


@model("weight norm")
class WeightNorm(nn.Module):
    def __init__(self, share=1):
        super().__init__()
        n, m = 32 // share, 24 // share
        self.a = nn.utils.parametrizations.weight_norm(nn.Linear(16, n))
        self.b, self.out = nn.Linear(n, m), nn.Linear(m, 5)

    def forward(self, x):
        return self.out(F.relu(self.b(F.relu(self.a(x)))))


@model("low rank as a product of two weights")
class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(16, 32), nn.Linear(32, 5)
        self.u, self.v = (
            nn.Parameter(torch.empty(32, 4)),
            nn.Parameter(torch.empty(4, 32)),
        )

    def forward(self, x):
        y = F.relu(self.a(x))
        return self.out(F.relu(F.linear(y, self.u @ self.v)))
