"""Layers and the ways in which they are joined, one construct each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.nets import Case, Gate, Net, c2f, conv, head, image, shuffle, tokens

LAYERS: list[Case] = [
    Case(
        "chain",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.n(s.a(x))))),
            a=conv(3, 8),
            n=nn.BatchNorm2d(8),
            b=conv(8, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
        ("fc.weight",),
    ),
    Case(
        "mlp",
        lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 4)),
        lambda: torch.randn(3, 8),
        ("0.weight", "2.weight"),
        ("4.weight",),
    ),
    Case(
        "residual",
        lambda: Net(
            lambda s, x: head(s, (y := s.a(x)) + s.c(F.relu(s.b(y)))),
            a=conv(3, 8),
            b=conv(8, 6),
            c=conv(6, 8),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "concat",
        lambda: Net(
            lambda s, x: head(s, s.c(torch.cat([s.a(x), s.b(x)], 1))),
            a=conv(3, 4),
            b=conv(3, 6),
            c=conv(10, 8),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "dense",
        lambda: Net(
            lambda s, x: head(s, torch.cat([y := s.a(x), z := s.b(F.relu(s.n(y))), s.c(torch.cat([y, z], 1))], 1)),
            a=conv(3, 6),
            n=nn.BatchNorm2d(6),
            b=conv(6, 4),
            c=conv(10, 4),
            fc=nn.Linear(14, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "depthwise",
        lambda: Net(
            lambda s, x: head(s, s.c(F.relu6(s.b(F.relu6(s.a(x)))))),
            a=conv(3, 8),
            b=conv(8, 8, groups=8),
            c=conv(8, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "depthwise x2",
        lambda: Net(lambda s, x: head(s, s.b(s.a(x))), a=conv(3, 8), b=conv(8, 16, groups=8), fc=nn.Linear(16, 4)),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "grouped",
        lambda: Net(
            lambda s, x: head(s, s.c(F.relu(s.b(F.relu(s.a(x)))))),
            a=conv(3, 8),
            b=conv(8, 12, groups=2),
            c=conv(12, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "squeeze-excite",
        lambda: Net(lambda s, x: head(s, s.g(F.silu(s.a(x)))), a=conv(3, 8), g=Gate(8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight", "g.a.weight", "g.b.weight"),
    ),
    Case(
        "flatten",
        lambda: Net(lambda s, x: s.fc(F.max_pool2d(s.a(x), 2).flatten(1)), a=conv(3, 8), fc=nn.Linear(128, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "unflatten",
        lambda: Net(lambda s, x: s.b(s.a(x).view(-1, 6, 4, 4)).mean((2, 3)), a=nn.Linear(8, 96), b=conv(6, 4)),
        lambda: torch.randn(2, 8),
        (),
        ("a.weight",),
    ),
    Case(
        "shuffle",
        lambda: Net(
            lambda s, x: head(s, s.c(shuffle(s.b(F.relu(s.a(x))), 2))),
            a=conv(3, 8, groups=1),
            b=conv(8, 8, groups=2),
            c=conv(8, 8, groups=2),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "nn.ChannelShuffle",
        lambda: Net(
            lambda s, x: head(s, s.c(s.s(s.a(x)))),
            a=conv(3, 8),
            s=nn.ChannelShuffle(2),
            c=conv(8, 8, groups=2),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight", "c.weight"),
    ),
    Case(
        "pixel shuffle",
        lambda: Net(
            lambda s, x: head(s, s.b(F.pixel_shuffle(s.a(x), 2))), a=conv(3, 16), b=conv(4, 6), fc=nn.Linear(6, 4)
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "pixel unshuffle",
        lambda: Net(
            lambda s, x: head(s, s.b(F.pixel_unshuffle(s.a(x), 2))), a=conv(3, 4), b=conv(16, 6), fc=nn.Linear(6, 4)
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "chunk C2f",
        lambda: Net(c2f, a=conv(3, 8), b=conv(4, 4), c=conv(12, 6), fc=nn.Linear(6, 4)),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "split with fixed sizes",
        lambda: Net(
            lambda s, x: head(s, s.b((p := s.a(x).split([4, 4], 1))[0]) + s.c(p[1])),
            a=conv(3, 8),
            b=conv(4, 6),
            c=conv(4, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("b.weight", "c.weight"),
        ("a.weight",),
    ),
    Case(
        "uneven split",
        lambda: Net(
            lambda s, x: head(s, s.b((p := s.a(x).split([3, 5], 1))[0]) + s.c(p[1])),
            a=conv(3, 8),
            b=conv(3, 6),
            c=conv(5, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("b.weight", "c.weight"),
        ("a.weight",),
    ),
    Case(
        "GLU",
        lambda: Net(lambda s, x: s.b(F.glu(s.a(x), -1)), a=nn.Linear(8, 12), b=nn.Linear(6, 4)),
        tokens(),
        ("a.weight",),
    ),
    Case(
        "gated FFN",
        lambda: Net(
            lambda s, x: s.d(F.silu(s.g(x)) * s.u(x)), g=nn.Linear(8, 12), u=nn.Linear(8, 12), d=nn.Linear(12, 8)
        ),
        tokens(),
        ("g.weight", "u.weight"),
        ("d.weight",),
    ),
    Case(
        "packed gated FFN",
        lambda: Net(
            lambda s, x: s.d(F.silu((p := s.g(x).chunk(2, -1))[0]) * p[1]), g=nn.Linear(8, 24), d=nn.Linear(12, 8)
        ),
        tokens(),
        ("g.weight",),
        ("d.weight",),
    ),
    Case(
        "transposed",
        lambda: Net(
            lambda s, x: head(s, s.c(F.relu(s.b(s.a(x))))),
            a=conv(3, 8),
            b=nn.ConvTranspose2d(8, 6, 2, 2),
            c=conv(6, 5),
            fc=nn.Linear(5, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "transposed grouped",
        lambda: Net(
            lambda s, x: head(s, s.c(F.relu(s.b(s.a(x))))),
            a=conv(3, 8),
            b=nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
            c=conv(12, 5),
            fc=nn.Linear(5, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "transposed depthwise",
        lambda: Net(
            lambda s, x: head(s, s.c(F.relu(s.b(s.a(x))))),
            a=conv(3, 8),
            b=nn.ConvTranspose2d(8, 8, 2, 2, groups=8),
            c=conv(8, 5),
            fc=nn.Linear(5, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
]
