"""Mixtures of experts as users write them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

WIDTH, EXPERTS = 6, 5


def mlp(width: int = WIDTH) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 7), nn.GELU(), nn.Linear(7, width))


class Mixture(nn.Module):
    """Experts in a list, chosen by a linear router; the subclasses say how."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=bias)
        self.experts = nn.ModuleList(mlp() for _ in range(EXPERTS))
        self.num_experts = EXPERTS

    def weigh(self, logits: Tensor) -> Tensor:
        """What every expert's output is multiplied by, `[tokens, experts]`; zero where a token does not go."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        shares = self.weigh(self.router(x))
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = (shares[:, i] > 0).nonzero().squeeze(-1)
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]) * shares[rows, i, None])
        return x + out


class TopTwo(Mixture):
    """Softmax over all, then the best two (Shazeer et al. 2017 without noise)."""

    def weigh(self, logits: Tensor) -> Tensor:
        values, chosen = logits.softmax(-1).topk(2, -1)
        return torch.zeros_like(logits).scatter(-1, chosen, values)


class TopTwoFirst(Mixture):
    """The best two, then softmax over these."""

    def weigh(self, logits: Tensor) -> Tensor:
        values, chosen = logits.topk(2, -1)
        return torch.zeros_like(logits).scatter(-1, chosen, values.softmax(-1))


class Switch(Mixture):
    """The best one, times its probability (Fedus et al. 2022, arXiv:2101.03961)."""

    def weigh(self, logits: Tensor) -> Tensor:
        values, chosen = logits.softmax(-1).max(-1)
        return torch.zeros_like(logits).scatter(-1, chosen[:, None], values[:, None])


class Soft(Mixture):
    """All experts, weighted (Jacobs et al. 1991)."""

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return x + torch.stack([expert(x) for expert in self.experts], 1).mul(shares.unsqueeze(-1)).sum(1)


class Sorted(Mixture):
    """The best two by sorting, so that no operation says how many are chosen; experts by their number."""

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        order = logits.argsort(-1, descending=True)
        if logits.shape[-1] < 2:
            raise ValueError("two experts are needed")
        shares = logits.softmax(-1).masked_fill(logits < logits.gather(-1, order[:, 1:2]), 0.0)
        out = torch.zeros_like(x)
        for i in range(self.num_experts):
            out = out + self.experts[i](x) * shares[:, i, None]
        return out


class Stacked(nn.Module):
    """Experts as slices of tensors, with biases, a scale of each, and scores that are corrected before the choice; in
    parts, of which the worst is left out (DeepSeek-AI 2024, arXiv:2412.19437)."""

    def __init__(self, experts: int = EXPERTS, parts: int = 1) -> None:
        super().__init__()
        self.size, self.parts = experts, parts
        self.gate = nn.Parameter(torch.randn(WIDTH, experts))
        self.up = nn.Parameter(torch.randn(experts, WIDTH, 7))
        self.up_bias = nn.Parameter(torch.randn(experts, 7))
        self.down = nn.Parameter(torch.randn(experts, 7, WIDTH))
        self.scale = nn.Parameter(torch.rand(experts) + 0.5)
        self.register_buffer("correction", torch.randn(experts) * 0.2)
        self.register_buffer("load", torch.zeros(experts, dtype=torch.long))
        self.out = nn.Linear(WIDTH, experts)  # as many classes as experts, which have nothing to do with them

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ self.gate).sigmoid()
        choice = scores + self.correction
        if self.parts > 1:
            each = self.size // self.parts
            worst = choice.view(-1, self.parts, each).topk(2, -1)[0].sum(-1).argmin(-1)
            away = torch.arange(self.parts).repeat_interleave(each) == worst[:, None]
            choice = choice.masked_fill(away, -torch.inf)
        chosen = choice.topk(2, -1)[1]
        shares = scores.gather(-1, chosen)
        shares = shares / shares.sum(-1, keepdim=True) * self.scale[chosen]
        y = torch.einsum("td,tkdf->tkf", x, self.up[chosen]) + self.up_bias[chosen]
        y = torch.einsum("tkf,tkfd->tkd", y.relu(), self.down[chosen])
        if self.training:
            self.load += chosen.flatten().bincount(minlength=self.load.numel())
        return self.out(x + (y * shares.unsqueeze(-1)).sum(1))


class Fused(nn.Module):
    """Every expert computes every token, in one product."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("td,edf,te->tf", x, self.weight, self.router(x).softmax(-1))


class Capacity(Mixture):
    """Experts take a number of tokens that depends on how many experts there are, and drop the others."""

    def weigh(self, logits: Tensor) -> Tensor:
        values, chosen = logits.softmax(-1).max(-1)
        shares = torch.zeros_like(logits).scatter(-1, chosen[:, None], values[:, None])
        room = max(logits.shape[0] // logits.shape[1] // 2, 1)
        return shares * ((shares > 0).cumsum(0) <= room)


class Named(Sorted):
    """The same, with a count of another name, and experts by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.how_many, self.unread = EXPERTS, EXPERTS
        del self.num_experts

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        order = logits.argsort(-1, descending=True)
        if logits.shape[-1] < 2:
            raise ValueError("two experts are needed")
        shares = logits.softmax(-1).masked_fill(logits < logits.gather(-1, order[:, 1:2]), 0.0)
        out = torch.zeros_like(x)
        for i in range(self.how_many):
            listed = isinstance(self.experts, nn.ModuleList)
            out = out + (self.experts[i] if listed else self.experts[f"expert_{i}"])(x) * shares[:, i, None]
        return out


class Noisy(TopTwo):
    """Logits with noise of a learned size (Shazeer et al. 2017, arXiv:1701.06538)."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = nn.Linear(WIDTH, EXPERTS)

    def forward(self, x: Tensor) -> Tensor:
        drawn = torch.linspace(-1, 1, x.shape[0])[:, None]
        shares = self.weigh(self.router(x) + nn.functional.softplus(self.noise(x)) * drawn)
        return x + torch.stack([expert(x) for expert in self.experts], 1).mul(shares.unsqueeze(-1)).sum(1)


class Hashed(Mixture):
    """A table says where a token goes; the router only says how much."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = torch.arange(x.shape[0]) % EXPERTS
        shares = self.router(x).sigmoid().gather(-1, chosen[:, None])
        return x + torch.stack([self.experts[i](row) for i, row in zip(chosen.tolist(), x, strict=True)]) * shares


class Pair(nn.Module):
    """Two mixtures side by side in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, EXPERTS)
        self.first = nn.ModuleList(mlp() for _ in range(EXPERTS))
        self.second = nn.ModuleList(mlp() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        for router, own in ((self.a, self.first), (self.b, self.second)):
            shares = router(x).softmax(-1)
            x = x + sum(expert(x) * shares[:, i, None] for i, expert in enumerate(own))
        return x


class Tasks(nn.Module):
    """A router for each task, over the same experts (Ma et al. 2018, MMoE)."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.ModuleList(nn.Linear(WIDTH, EXPERTS) for _ in range(2))
        self.experts = nn.ModuleList(mlp() for _ in range(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        every = torch.stack([expert(x) for expert in self.experts], 1)
        return torch.cat([(every * r(x).softmax(-1).unsqueeze(-1)).sum(1) for r in self.routers], -1)


class Rows(nn.Module):
    """The experts' matrices as rows of one, as in DBRX and in layers that compute all experts with one product."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Sequential(nn.Linear(WIDTH, 2 * EXPERTS), nn.ReLU(), nn.Linear(2 * EXPERTS, EXPERTS))
        self.up, self.down = nn.Linear(WIDTH, EXPERTS * 4), nn.Parameter(torch.randn(EXPERTS * 4, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(x.shape[0], -1, 4).relu()
        y = torch.einsum("tef,efd->ted", y, self.down.view(-1, 4, WIDTH))
        return x + (y * self.router(x).softmax(-1).unsqueeze(-1)).sum(1)


class Blend(nn.Module):
    """One matrix per sample, the weighted sum of the experts' (Yang et al. 2019, arXiv:1904.04971, CondConv)."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(WIDTH, EXPERTS)
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH * WIDTH))
        self.bias = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.route(x).sigmoid()
        weight = (shares @ self.weight).view(-1, WIDTH, WIDTH)
        return torch.einsum("td,tdf->tf", x, weight) + shares @ self.bias


@dataclass
class Setting:
    num_experts: int = EXPERTS


class Configured(TopTwo):
    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.cfg = setting


class Layers(nn.Module):
    """Two layers that share a configuration."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.cfg = setting
        self.layers = nn.ModuleList(Configured(setting) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def tokens(count: int = 12) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(7))
