"""Networks written here: translation between images, restoration, recurrence, sequences to sequences, graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.networks.entry import CONV, MLP, Network, ids, image


def double(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True),
        nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(True),
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger, Fischer & Brox 2015, arXiv:1505.04597: features of the way down are concatenated on the way up."""

    def __init__(self, width: int = 8, classes: int = 4) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *widths[:-1]], widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(double(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for i, stage in enumerate(self.down):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], 1))
        out: Tensor = self.head(x)
        return out


class MirroredBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(True),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class CycleGenerator(nn.Sequential):
    """The residual generator of CycleGAN (Zhu et al. 2017, arXiv:1703.10593), narrow."""

    def __init__(self, width: int = 8, blocks: int = 3) -> None:
        a, b, c = width, 2 * width, 4 * width
        super().__init__(
            nn.ReflectionPad2d(3), nn.Conv2d(3, a, 7), nn.InstanceNorm2d(a), nn.ReLU(True),
            nn.Conv2d(a, b, 3, 2, 1), nn.InstanceNorm2d(b), nn.ReLU(True),
            nn.Conv2d(b, c, 3, 2, 1), nn.InstanceNorm2d(c), nn.ReLU(True),
            *(MirroredBlock(c) for _ in range(blocks)),
            nn.ConvTranspose2d(c, b, 3, 2, 1, 1), nn.InstanceNorm2d(b), nn.ReLU(True),
            nn.ConvTranspose2d(b, a, 3, 2, 1, 1), nn.InstanceNorm2d(a), nn.ReLU(True),
            nn.ReflectionPad2d(3), nn.Conv2d(a, 3, 7), nn.Tanh(),
        )  # fmt: skip


class PatchCritic(nn.Sequential):
    """The patch discriminator that goes with it, with spectral norm as later generators use it."""

    def __init__(self, width: int = 8) -> None:
        norm = nn.utils.parametrizations.spectral_norm
        super().__init__(
            norm(nn.Conv2d(3, width, 4, 2, 1)), nn.LeakyReLU(0.2),
            norm(nn.Conv2d(width, 2 * width, 4, 2, 1)), nn.LeakyReLU(0.2),
            norm(nn.Conv2d(2 * width, 1, 4, 1, 1)),
        )  # fmt: skip


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.relu(self.a(x)))
        gate: Tensor = torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + y * gate


class Restorer(nn.Module):
    """Super-resolution by residual blocks and pixel shuffle: EDSR (Lim et al. 2017, arXiv:1707.02921) with the channel
    attention of RCAN (Zhang et al. 2018, arXiv:1807.02758)."""

    def __init__(self, width: int = 16, blocks: int = 3, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        self.up = nn.Sequential(nn.Conv2d(width, width * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x)
        fine: Tensor = self.tail(self.up(y + self.body(y)))
        return fine + F.interpolate(x, scale_factor=self.scale, mode="nearest")


class Denoiser(nn.Module):
    """Predicts the noise: DnCNN (Zhang et al. 2016, arXiv:1608.03981)."""

    def __init__(self, width: int = 16, depth: int = 5) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.ReLU(True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(True)]
        self.body = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """A text classifier: embedding, two recurrent layers in both directions, the mean over time, a linear head."""

    def __init__(self, cell: Callable[..., nn.RNNBase], both: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.cell = cell(16, 24, num_layers=2, bidirectional=both, batch_first=True)
        self.head = nn.Linear(48 if both else 24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.cell(self.embed(x))
        out: Tensor = self.head(y.mean(1))
        return out


class Unrolled(nn.Module):
    """A recurrent cell called once per step from Python."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(64, 16), nn.LSTMCell(16, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.cell.hidden_size, dtype=self.embed.weight.dtype)
        for step in self.embed(x).unbind(1):
            h, c = self.cell(step, (h, c))
        out: Tensor = self.head(h)
        return out


class Attending(nn.Module):
    """Sequence to sequence with recurrent encoder and decoder and dot-product attention (Luong et al. 2015)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(64, 16), nn.Embedding(64, 16)
        self.encoder = nn.GRU(16, width, batch_first=True)
        self.decoder = nn.GRU(16, width, batch_first=True)
        self.join, self.head = nn.Linear(2 * width, width), nn.Linear(width, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, state = self.encoder(self.source(source))
        y, _ = self.decoder(self.target(target), state)
        seen = torch.softmax(y @ memory.transpose(1, 2), -1) @ memory
        out: Tensor = self.head(torch.tanh(self.join(torch.cat([y, seen], -1))))
        return out


class Translator(nn.Module):
    """torch.nn.Transformer between two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(64, 32), nn.Embedding(64, 32)
        self.body = nn.Transformer(32, 4, 2, 2, 48, batch_first=True)
        self.head = nn.Linear(32, 64)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.source(source), self.target(target)))
        return out


class GraphConvolution(nn.Module):
    """Two layers of Kipf & Welling 2016, arXiv:1609.02907, on a dense adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24, bias=False), nn.Linear(24, 5, bias=False)
        self.shift = nn.Parameter(torch.zeros(24))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        scale = (adjacency.sum(-1) + 1).rsqrt()
        norm = scale[:, None] * (adjacency + torch.eye(len(adjacency), dtype=x.dtype)) * scale
        out: Tensor = norm @ self.b(F.relu(norm @ self.a(x) + self.shift))
        return out


class GraphAttention(nn.Module):
    """Two layers of Velickovic et al. 2017, arXiv:1710.10903, with all heads in one weight."""

    def __init__(self, heads: int = 4, width: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.a, self.b = nn.Linear(8, heads * width, bias=False), nn.Linear(heads * width, 5, bias=False)
        self.left, self.right = (nn.Parameter(torch.randn(heads, width)) for _ in range(2))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.a(x).view(len(x), self.heads, -1).transpose(0, 1)
        one, other = (h * self.left[:, None]).sum(-1), (h * self.right[:, None]).sum(-1)
        score = F.leaky_relu(one[:, :, None] + other[:, None], 0.2).masked_fill(adjacency == 0, -1e9)
        y = (score.softmax(-1) @ h).transpose(0, 1).reshape(len(x), -1)
        out: Tensor = adjacency @ self.b(F.elu(y))
        return out


class MessagePassing(nn.Module):
    """GraphSAGE by edges (Hamilton, Ying & Leskovec 2017, arXiv:1706.02216): gather, add up, concatenate, pool."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 24), nn.Linear(48, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.a, self.b):
            mean = torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])
            x = F.relu(layer(torch.cat([x, mean], -1)))
        out: Tensor = self.head(x.mean(0, keepdim=True))
        return out


def graph(nodes: int = 9) -> tuple[Tensor, Tensor]:
    links = (torch.rand(nodes, nodes) < 0.4).float()
    return torch.randn(nodes, 8), ((links + links.T + torch.eye(nodes)) > 0).float()


def edges(nodes: int = 9) -> tuple[Tensor, Tensor]:
    return torch.randn(nodes, 8), torch.randint(0, nodes, (2, 20))


def two_texts(length: int = 7) -> tuple[Tensor, Tensor]:
    return ids(length), ids(length - 2)


NETWORKS = [
    Network("other/unet", "images", UNet, image(32), image(48), CONV, fast=True),
    Network("other/cyclegan_generator", "images", CycleGenerator, image(32), image(48), CONV, fast=True),
    Network("other/patch_critic", "images", PatchCritic, image(32), image(48), CONV, fast=True),
    Network("other/super_resolution", "images", Restorer, image(16), image(24), CONV, fast=True),
    Network("other/denoiser", "images", Denoiser, image(16), image(24), CONV, fast=True),
    Network("other/lstm", "sequences", lambda: Recurrent(nn.LSTM), ids, lambda: ids(12), MLP, fast=True),
    Network("other/gru", "sequences", lambda: Recurrent(nn.GRU), ids, lambda: ids(12), MLP, fast=True),
    Network("other/rnn", "sequences", lambda: Recurrent(nn.RNN, both=False), ids, lambda: ids(12), MLP, fast=True),
    Network("other/lstm_cell", "sequences", Unrolled, ids, lambda: ids(12), MLP, fast=True),
    Network("other/seq2seq_gru", "sequences", Attending, two_texts, lambda: two_texts(12), MLP, fast=True),
    Network(
        "other/seq2seq_transformer",
        "sequences",
        Translator,
        two_texts,
        lambda: two_texts(12),
        (*MLP, "head"),
        fast=True,
    ),
    Network("other/gcn", "graphs", GraphConvolution, graph, lambda: graph(12), MLP, fast=True),
    Network("other/gat", "graphs", GraphAttention, graph, lambda: graph(12), ("head",), fast=True),
    Network("other/graphsage", "graphs", MessagePassing, edges, lambda: edges(12), MLP, fast=True),
]
