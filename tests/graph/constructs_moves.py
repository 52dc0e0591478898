"""Normalization, sharing, data movement and attention, one construct each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.graph.nets import (
    Attention,
    Case,
    Net,
    Scaled,
    conv,
    head,
    image,
    option_a,
    slice_write,
    tied,
    tied_hidden,
    tokens,
)

MOVES: list[Case] = [
    Case(
        "LayerNorm FFN",
        lambda: Net(
            lambda s, x: s.h(s.n(x + s.b(F.gelu(s.a(s.m(x)))))),
            m=nn.LayerNorm(8),
            a=nn.Linear(8, 16),
            b=nn.Linear(16, 8),
            n=nn.LayerNorm(8),
            h=nn.Linear(8, 4),
        ),
        tokens(),
        ("a.weight",),
        ("b.weight", "h.weight"),
    ),
    Case(
        "LayerNorm stream",
        lambda: Net(lambda s, x: s.h(s.n(s.a(x))), a=nn.Linear(8, 16), n=nn.LayerNorm(16), h=nn.Linear(16, 4)),
        tokens(),
        (),
        ("a.weight", "h.weight"),
    ),
    Case(
        "RMSNorm stream",
        lambda: Net(lambda s, x: s.h(s.n(s.a(x))), a=nn.Linear(8, 16), n=nn.RMSNorm(16), h=nn.Linear(16, 4)),
        tokens(),
        ("a.weight",),
        ("h.weight",),
    ),
    Case(
        "GroupNorm",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.n(s.a(x))))),
            a=conv(3, 12),
            n=nn.GroupNorm(4, 12),
            b=conv(12, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "InstanceNorm",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.n(s.a(x))))),
            a=conv(3, 8),
            n=nn.InstanceNorm2d(8, affine=True),
            b=conv(8, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "LocalResponseNorm",
        lambda: Net(lambda s, x: head(s, s.n(s.a(x))), a=conv(3, 8), n=nn.LocalResponseNorm(3), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case("tied layers", tied, lambda: torch.randn(2, 8), (), ("a.weight", "c.weight")),
    Case("tied hidden layers", tied_hidden, lambda: torch.randn(2, 8), ("a.weight", "h1.weight"), ("c.weight",)),
    Case(
        "reused module",
        lambda: Net(
            lambda s, x: head(s, s.b(F.relu(s.b(F.relu(s.a(x)))))), a=conv(3, 8), b=conv(8, 8), fc=nn.Linear(8, 4)
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "reused on two inputs",
        lambda: Net(
            lambda s, x: head(s, s.c(s.a(x)) + s.c(s.b(x))),
            a=conv(3, 8),
            b=conv(3, 8),
            c=conv(8, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight", "c.weight"),
    ),
    Case(
        "in place",
        lambda: Net(
            lambda s, x: head(s, F.relu_(s.a(x)).mul_(2).add_(s.b(x))), a=conv(3, 8), b=conv(3, 8), fc=nn.Linear(8, 4)
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case("slice write", lambda: Net(slice_write, a=conv(3, 8), fc=nn.Linear(8, 4)), image(), ("a.weight",)),
    Case(
        "pad channels by code",
        lambda: Net(
            lambda s, x: head(s, s.b(F.pad(s.a(x), (0, 0, 0, 0, 1, 2)))),
            a=conv(3, 8),
            b=conv(11, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "option A shortcut",
        lambda: Net(
            option_a, a=conv(3, 8), b=conv(8, 6), c=nn.Conv2d(6, 12, 3, 2, 1), d=conv(12, 4), fc=nn.Linear(4, 4)
        ),
        image(),
        ("b.weight", "d.weight", "a.weight"),
    ),
    Case(
        "flip channels",
        lambda: Net(lambda s, x: head(s, s.a(x).flip(1)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "roll channels",
        lambda: Net(lambda s, x: head(s, s.a(x).roll(1, 1)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "roll space",
        lambda: Net(lambda s, x: head(s, s.a(x).roll((1, 2), (2, 3))), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "mean over channels",
        lambda: Net(lambda s, x: head(s, (y := s.a(x)) * y.mean(1, keepdim=True)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "max over channels",
        lambda: Net(lambda s, x: head(s, (y := s.a(x)) * y.amax(1, keepdim=True)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "softmax over channels",
        lambda: Net(lambda s, x: head(s, s.a(x).softmax(1)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "normalize",
        lambda: Net(lambda s, x: head(s, F.normalize(s.a(x), dim=1)), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight",),
        ("fc.weight",),
    ),
    Case(
        "channel count in code",
        lambda: Net(lambda s, x: head(s, (y := s.a(x)) / y.shape[1]), a=conv(3, 8), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "channel slice",
        lambda: Net(lambda s, x: head(s, s.b(s.a(x)[:, :3])), a=conv(3, 8), b=conv(3, 6), fc=nn.Linear(6, 4)),
        image(),
        ("a.weight", "b.weight"),  # what lies behind the slice is used by nothing
        (),
    ),
    Case(
        "strided channel slice",
        lambda: Net(
            lambda s, x: head(s, s.b((y := s.a(x))[:, ::2]) + s.c(y[:, 1::2])),
            a=conv(3, 8),
            b=conv(4, 6),
            c=conv(4, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "channel index",
        lambda: Net(lambda s, x: head(s, s.b(s.a(x)[:, [0, 2, 5]])), a=conv(3, 8), b=conv(3, 6), fc=nn.Linear(6, 4)),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "select channel",
        lambda: Net(
            lambda s, x: head(s, (y := s.a(x)) * y[:, 2:3] + y[:, 3].unsqueeze(1)), a=conv(3, 8), fc=nn.Linear(8, 4)
        ),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "repeat channels",
        lambda: Net(
            lambda s, x: head(s, s.b(s.a(x).repeat(1, 2, 1, 1))), a=conv(3, 4), b=conv(8, 6), fc=nn.Linear(6, 4)
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "repeat interleave",
        lambda: Net(
            lambda s, x: head(s, s.b(s.a(x).repeat_interleave(2, 1))), a=conv(3, 4), b=conv(8, 6), fc=nn.Linear(6, 4)
        ),
        image(),
        ("b.weight",),
    ),
    Case(
        "per-channel tensors",
        lambda: Net(lambda s, x: head(s, s.m(s.a(x))), a=conv(3, 8), m=Scaled(8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "plain tensor attribute",
        lambda: Net(lambda s, x: head(s, s.m(s.a(x))), a=conv(3, 8), m=Scaled(8, True), fc=nn.Linear(8, 4)),
        image(),
        (),
        ("a.weight",),
    ),
    Case(
        "PReLU",
        lambda: Net(lambda s, x: head(s, s.p(s.a(x))), a=conv(3, 8), p=nn.PReLU(8), fc=nn.Linear(8, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "resize and add",
        lambda: Net(
            lambda s, x: head(
                s, (y := s.a(x)) + F.interpolate(s.b(F.avg_pool2d(y, 2)), scale_factor=2, mode="bilinear")
            ),
            a=conv(3, 8),
            b=conv(8, 8),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "channels last",
        lambda: Net(
            lambda s, x: s.fc(F.gelu(s.b(s.a(x).permute(0, 2, 3, 1))).mean((1, 2))),
            a=conv(3, 8),
            b=nn.Linear(8, 16),
            fc=nn.Linear(16, 4),
        ),
        image(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "einsum",
        lambda: Net(
            lambda s, x: s.fc(torch.einsum("nchw,oc->no", s.a(x), s.w.weight)),
            a=conv(3, 8),
            w=nn.Linear(8, 6),
            fc=nn.Linear(6, 4),
        ),
        image(),
        ("a.weight", "w.weight"),
    ),
    Case(
        "token mixing",
        lambda: Net(
            lambda s, x: s.fc((x + s.b(F.gelu(s.a(x.transpose(1, 2)))).transpose(1, 2)).mean(1)),
            a=nn.Linear(5, 12),
            b=nn.Linear(12, 5),
            fc=nn.Linear(8, 4),
        ),
        tokens(),
        ("a.weight",),
    ),
    Case(
        "unfold",
        lambda: Net(lambda s, x: s.fc(F.unfold(s.a(x), 3, padding=1).mean(2)), a=conv(3, 4), fc=nn.Linear(36, 4)),
        image(),
        ("a.weight",),
    ),
    Case(
        "matmul of activations",
        lambda: Net(
            lambda s, x: s.fc((s.a(x) @ s.b(x).transpose(1, 2)).softmax(-1) @ x),
            a=nn.Linear(8, 6),
            b=nn.Linear(8, 6),
            fc=nn.Linear(8, 4),
        ),
        tokens(),
        ("a.weight", "b.weight"),
    ),
    Case(
        "hand-written attention",
        lambda: Net(lambda s, x: s.d(F.gelu(s.c(s.a(x)))), a=Attention(8, 2), c=nn.Linear(8, 12), d=nn.Linear(12, 8)),
        tokens(),
        ("c.weight", "a.proj.weight"),
        ("a.qkv.weight",),
    ),
    Case(
        "nn.MultiheadAttention",
        lambda: Net(
            lambda s, x: s.b(s.a(x, x, x)[0]), a=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 4)
        ),
        tokens(),
        (),
        ("a.in_proj_weight", "b.weight"),
    ),
    Case(
        "nn.TransformerEncoderLayer",
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        tokens(),
        ("linear1.weight",),
        ("linear2.weight",),
    ),
    Case(
        "embedding",
        lambda: Net(
            lambda s, x: s.b(F.relu(s.a(s.e(x)))), e=nn.Embedding(20, 8), a=nn.Linear(8, 12), b=nn.Linear(12, 4)
        ),
        lambda: torch.randint(0, 20, (2, 5)),
        ("e.weight", "a.weight"),
        ("b.weight",),
    ),
    Case(
        "pooled to one pixel, channels last",
        lambda: Net(
            lambda s, x: s.fc(F.adaptive_avg_pool2d(s.a(x.to(memory_format=torch.channels_last)), 1).flatten(1)),
            a=conv(3, 8),
            fc=nn.Linear(8, 4),
        ),
        image(),
        ("a.weight",),
        ("fc.weight",),
    ),
    Case(
        "one position of which only the shape is used",
        lambda: Net(
            lambda s, x: s.b(F.relu(y := s.a(x)) * (1 + y[:, :, -1].shape[1])),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        tokens(),
        ("a.weight",),
        ("b.weight",),
    ),
    Case(
        "one position that is used",
        lambda: Net(
            lambda s, x: s.b(F.relu(y := s.a(x))) * y[:, :, -1].unsqueeze(-1),
            a=nn.Linear(8, 12),
            b=nn.Linear(12, 4),
        ),
        tokens(),
        (),
        ("a.weight", "b.weight"),
    ),
    Case(
        "conv1d and conv3d",
        lambda: Net(
            lambda s, x: s.fc(F.relu(s.b(F.relu(s.a(x)).unsqueeze(2).unsqueeze(3)).flatten(2).mean(2))),
            a=nn.Conv1d(5, 8, 3, padding=1),
            b=nn.Conv3d(8, 6, 1),
            fc=nn.Linear(6, 4),
        ),
        tokens(),
        ("a.weight", "b.weight"),
    ),
]
