"""More networks written here: diffusion, volumes, sound, tables, point sets, fields, latents that look at inputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.networks.entry import CONV, MLP, Network, image


class ChannelNorm(nn.Module):
    """Directions of the channels, scaled (the norm of many diffusion networks)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.gain * x.shape[1] ** 0.5


class TimedBlock(nn.Module):
    def __init__(self, a: int, b: int, time: int) -> None:
        super().__init__()
        self.time, self.one, self.two = nn.Linear(time, 2 * b), nn.Conv2d(a, b, 3, 1, 1), nn.Conv2d(b, b, 3, 1, 1)
        self.norm_one, self.norm_two = ChannelNorm(b), ChannelNorm(b)
        self.skip = nn.Conv2d(a, b, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(F.silu(time))[:, :, None, None].chunk(2, 1)
        y = F.silu(self.norm_one(self.one(x)) * (1 + scale) + shift)
        return F.silu(self.norm_two(self.two(y))) + self.skip(x)  # type: ignore[no-any-return]


class Diffusion(nn.Module):
    """A denoising network that is told the time (Ho, Jain & Abbeel 2020, arXiv:2006.11239), with attention inside."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.time = nn.Sequential(nn.Linear(width, 24), nn.SiLU(), nn.Linear(24, 24))
        self.down = nn.ModuleList([TimedBlock(3, width, 24), TimedBlock(width, 2 * width, 24)])
        self.qkv, self.project = nn.Conv2d(2 * width, 24, 1, bias=False), nn.Conv2d(8, 2 * width, 1)
        self.up, self.head = TimedBlock(3 * width, width, 24), nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        rates = torch.exp(-torch.arange(4, dtype=x.dtype))
        angles = time[:, None] * rates
        told = self.time(torch.cat([angles.sin(), angles.cos()], 1))
        first = self.down[0](x, told)
        y = self.down[1](F.avg_pool2d(first, 2), told)
        b, _, h, w = y.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w).transpose(2, 3) for t in self.qkv(y).chunk(3, 1))
        seen = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(b, -1, h, w)
        y = F.interpolate(y + self.project(seen), scale_factor=2)
        out: Tensor = self.head(self.up(torch.cat([y, first], 1), told))
        return out


class Volumes(nn.Module):
    """A residual U-shaped network for volumes (Milletari, Navab & Ahmadi 2016, arXiv:1606.04797)."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Conv3d(1, width, 3, padding=1), nn.InstanceNorm3d(width), nn.PReLU(width)
        self.down, self.deep = nn.Conv3d(width, 2 * width, 2, 2), nn.Conv3d(2 * width, 2 * width, 3, padding=1)
        self.up, self.join = nn.ConvTranspose3d(2 * width, width, 2, 2), nn.Conv3d(2 * width, 2 * width, 3, padding=1)
        self.head = nn.Conv3d(2 * width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = self.act(self.norm(self.stem(x)))
        y = self.down(kept)
        y = F.elu(y + self.deep(F.elu(y)))
        both = torch.cat([self.up(y), kept], 1)
        out: Tensor = self.head(F.elu(both + self.join(both)))
        return out


class Separator(nn.Module):
    """Masks over a learned transform of sound (Luo & Mesgarani 2019, arXiv:1809.07454), dilated convolutions inside."""

    def __init__(self, basis: int = 16, width: int = 12, hidden: int = 20, speakers: int = 2) -> None:
        super().__init__()
        self.speakers = speakers
        self.encoder, self.narrow = nn.Conv1d(1, basis, 8, 4, bias=False), nn.Conv1d(basis, width, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(width, hidden, 1), nn.PReLU(), nn.BatchNorm1d(hidden),
                nn.Conv1d(hidden, hidden, 3, padding=2**i, dilation=2**i, groups=hidden), nn.PReLU(),
                nn.BatchNorm1d(hidden), nn.Conv1d(hidden, 2 * width, 1),
            )
            for i in range(3)
        )  # fmt: skip
        self.masks, self.decoder = nn.Conv1d(width, speakers * basis, 1), nn.ConvTranspose1d(basis, 1, 8, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        sound = self.encoder(x)
        y, total = self.narrow(sound), torch.zeros(1, dtype=x.dtype)
        for block in self.blocks:
            residual, skip = block(y).chunk(2, 1)
            y, total = y + residual, total + skip
        masks = torch.sigmoid(self.masks(total)).view(len(x), self.speakers, -1, sound.shape[-1])
        parts = (masks * sound[:, None]).flatten(0, 1)
        out: Tensor = self.decoder(parts).view(len(x), self.speakers, -1)
        return out


class Tabular(nn.Module):
    """One token for each column of a table (Gorishniy et al. 2021, arXiv:2106.11959)."""

    def __init__(self, numbers: int = 4, sizes: tuple[int, ...] = (3, 5), width: int = 16) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.randn(numbers, width)) for _ in range(2))
        self.tables = nn.ModuleList(nn.Embedding(n, width) for n in sizes)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.up, self.gate, self.down = nn.Linear(width, 24), nn.Linear(width, 24), nn.Linear(24, width)
        self.norm, self.mix, self.head = nn.RMSNorm(width), nn.Linear(width, width), nn.Linear(width, 2)

    def forward(self, numbers: Tensor, classes: Tensor) -> Tensor:
        kinds = [table(classes[:, i]) for i, table in enumerate(self.tables)]
        tokens = [self.first.expand(len(numbers), -1, -1), numbers[..., None] * self.scale + self.shift]
        x = torch.cat([*tokens, torch.stack(kinds, 1)], 1)
        x = x + self.mix(self.norm(x)).mean(1, keepdim=True)
        y = self.norm(x)
        out: Tensor = self.head((x + self.down(self.up(y) * F.relu(self.gate(y))))[:, 0])
        return out


class Quantizer(nn.Module):
    """An autoencoder whose code is one of a table (van den Oord et al. 2017, arXiv:1711.00937)."""

    def __init__(self, width: int = 12, code: int = 6, entries: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, code, 3, 1, 1))
        self.table = nn.Embedding(entries, code)
        self.decoder = nn.Sequential(nn.Conv2d(code, width, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(width, 3, 4, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x).permute(0, 2, 3, 1)
        flat = z.flatten(0, 2)
        far = flat.pow(2).sum(1, keepdim=True) - 2 * flat @ self.table.weight.T + self.table.weight.pow(2).sum(1)
        chosen = self.table(far.argmin(1)).view(z.shape)
        out: Tensor = self.decoder((z + (chosen - z).detach()).permute(0, 3, 1, 2))
        return out


class Points(nn.Module):
    """Sets of points: turned by a matrix that is computed from them, and the largest of every feature (Qi et al. 2016,
    arXiv:1612.00593)."""

    def __init__(self) -> None:
        super().__init__()
        self.turn = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.matrix = nn.Linear(16, 9)
        self.one = nn.Sequential(nn.Conv1d(3, 16, 1), nn.BatchNorm1d(16), nn.ReLU())
        self.two = nn.Sequential(nn.Conv1d(16, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.parts = nn.Sequential(nn.Conv1d(48, 24, 1), nn.ReLU(), nn.Conv1d(24, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        turn = self.matrix(self.turn(x).amax(2)).view(-1, 3, 3)
        local = self.one(torch.bmm(turn, x))
        whole = self.two(local).amax(2, keepdim=True)
        out: Tensor = self.parts(torch.cat([local, whole.expand(-1, -1, x.shape[2])], 1))
        return out


class Field(nn.Module):
    """Color and density of places, from sines of their coordinates (Mildenhall et al. 2020, arXiv:2003.08934)."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(15, width), nn.Linear(width + 15, width)
        self.density, self.feature = nn.Linear(width, 1), nn.Linear(width, width)
        self.color = nn.Sequential(nn.Linear(width + 3, 12), nn.ReLU(), nn.Linear(12, 3), nn.Sigmoid())

    def forward(self, place: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        angles = (place[..., None] * torch.tensor([1.0, 2.0], dtype=place.dtype)).flatten(-2)
        told = torch.cat([place, angles.sin(), angles.cos()], -1)
        x = F.relu(self.again(torch.cat([torch.sin(self.first(told)), told], -1)))
        return self.color(torch.cat([self.feature(x), view], -1)), F.softplus(self.density(x))


class Latents(nn.Module):
    """A few latents look at all inputs (Jaegle et al. 2021, arXiv:2103.03206): one head for keys and values."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.latents = heads, nn.Parameter(torch.randn(5, width))
        self.query, self.key, self.value = nn.Linear(width, 32), nn.Linear(10, 8), nn.Linear(10, 8)
        self.out, self.up, self.down = nn.Linear(32, width), nn.Linear(width, 40), nn.Linear(40, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        b = len(x)
        z = self.latents.expand(b, -1, -1)
        for _ in range(2):
            q = self.query(z).view(b, -1, self.heads, 8).transpose(1, 2)
            seen = F.scaled_dot_product_attention(q, self.key(x)[:, None], self.value(x)[:, None])
            z = z + self.out(seen.transpose(1, 2).reshape(b, -1, seen.shape[-1] * self.heads))
            z = z + self.down(F.gelu(self.up(z)))
        out: Tensor = self.head(z.mean(1))
        return out


def table() -> tuple[Tensor, Tensor]:
    return torch.randn(3, 4), torch.stack([torch.randint(0, 3, (3,)), torch.randint(0, 5, (3,))], 1)


def noisy(size: int = 16) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, size, size), torch.tensor([3.0, 7.0])


def places(count: int = 6) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3), torch.randn(count, 3)


NETWORKS = [
    Network("other/diffusion", "images", Diffusion, noisy, lambda: noisy(24), ("width", "head"), fast=True),
    Network(
        "other/volumes", "images", Volumes, lambda: torch.randn(1, 1, 8, 8, 8), lambda: torch.randn(1, 1, 12, 8, 8),
        CONV, fast=True,
    ),
    Network("other/quantizer", "images", Quantizer, image(16), image(24), CONV, fast=True),
    Network(
        "other/separator", "sequences", Separator, lambda: torch.randn(2, 1, 64), lambda: torch.randn(1, 1, 96),
        CONV, fast=True,
    ),
    Network("other/tabular", "sequences", Tabular, table, None, (*MLP, "width"), fast=True),
    Network(
        "other/points", "sequences", Points, lambda: torch.randn(2, 3, 12), lambda: torch.randn(1, 3, 20), CONV,
        fast=True,
    ),
    Network("other/field", "sequences", Field, places, lambda: places(9), MLP, fast=True),
    Network(
        "other/latents", "sequences", Latents, lambda: torch.randn(2, 7, 10), lambda: torch.randn(1, 11, 10),
        (*MLP, "head"), fast=True,
    ),
]  # fmt: skip
