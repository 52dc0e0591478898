"""Networks that are nothing but a drawn list of operations, interpreted: `t4 = add(t1, t3)`, one line each."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = (8, 8, 12, 16)


@dataclass(frozen=True)
class Step:
    """One line: the value's name, the operation, what goes in, its numbers, and the module that it uses."""

    name: str
    op: str
    inputs: tuple[str, ...]
    numbers: dict[str, int] = field(default_factory=dict)
    module: str = ""

    def __str__(self) -> str:
        given = [*self.inputs, *(f"{k}={v}" for k, v in self.numbers.items())]
        return f"{self.name} = {self.module or self.op}({', '.join(given)})" + (f"  # {self.op}" if self.module else "")


class Drawn(nn.Module):
    """Interprets a list of steps on images (`dim` = 1) or on tokens (`dim` = -1); ends in one linear layer."""

    def __init__(self, seed: int, image: bool, length: int) -> None:
        super().__init__()
        self.image, self.dim, self.steps = image, 1 if image else -1, list[Step]()
        r = random.Random(seed)
        self.widths: dict[str, int] = {"x": 3 if image else 8}
        self._dense(r, "x", 8)
        self._dense(r, "t0", r.choice(WIDTHS))
        while len(self.steps) < length:
            self._draw(r)
        used = {name for step in self.steps for name in step.inputs}
        self.ends = [step.name for step in self.steps if step.name not in used][-4:]
        self.head = nn.Linear(sum(self.widths[name] for name in self.ends), 4)

    def _add(self, op: str, inputs: tuple[str, ...], width: int, module: nn.Module | str = "", **numbers: int) -> str:
        name = f"t{len(self.steps)}"
        if isinstance(module, nn.Module):
            self.add_module(f"m{len(self.steps)}", module)
            module = f"m{len(self.steps)}"
        self.steps.append(Step(name, op, inputs, numbers, module))
        self.widths[name] = width
        return name

    def _dense(self, r: random.Random, x: str, out: int, groups: int = 1) -> str:
        c, k = self.widths[x], r.choice((1, 3))
        layer = nn.Conv2d(c, out, k, padding=k // 2, groups=groups) if self.image else nn.Linear(c, out)
        return self._add("dense", (x,), out, layer, out=out)

    def _like(self, r: random.Random, x: str) -> str:
        """Another value of the same width: an old one or a new one."""
        same = [s.name for s in self.steps if s.name != x and self.widths[s.name] == self.widths[x]]
        return r.choice(same) if same and r.random() < 0.8 else self._dense(r, x, self.widths[x])

    def _draw(self, r: random.Random) -> None:
        x = self.steps[-1].name if r.random() < 0.6 else r.choice(self.steps).name
        c = self.widths[x]
        op = r.choice(
            ("dense", "dense", "dense", "norm", "act", "add", "add", "mul", "gate", "maximum", "cat", "cat", "part",
             "slice", "again", "depthwise", "grouped", "summary", "move", "squeeze", "scale")
        )  # fmt: skip
        if op == "dense":
            self._dense(r, x, r.choice(WIDTHS))
        elif op == "norm":
            kinds = (nn.BatchNorm2d(c), nn.GroupNorm(2, c)) if self.image else (nn.LayerNorm(c), nn.RMSNorm(c))
            self._add("norm", (x,), c, r.choice(kinds))
        elif op == "act":
            self._add(r.choice(("relu", "silu", "tanh", "softplus")), (x,), c)
        elif op in ("add", "mul", "gate", "maximum"):
            self._add(op, (x, self._like(r, x)), c)
        elif op == "cat" and c <= 20:
            small = [s.name for s in self.steps if self.widths[s.name] <= 12]
            others = tuple(r.choice(small) for _ in range(r.randint(1, 2)))
            self._add("cat", (x, *others), c + sum(self.widths[n] for n in others))
        elif op == "part" and c % 4 == 0 and c > 8:
            n = r.choice((2, 4) if c % 8 == 0 else (2,))
            self._add("part", (x,), c // n, of=n, take=r.randrange(n))
        elif op == "slice" and c > 8:
            start = r.randrange(0, c - 8 + 1, 2)
            self._add("slice", (x,), 8, start=start, stop=start + 8)
        elif op == "again":
            fits = [s for s in self.steps if s.op == "dense" and s.inputs[0] != x and self.widths[s.inputs[0]] == c]
            if fits:
                step = r.choice(fits)
                self._add("dense", (x,), self.widths[step.name], step.module, out=self.widths[step.name])
        elif op == "depthwise" and self.image:
            self._add("depthwise", (x,), c, nn.Conv2d(c, c, 3, padding=1, groups=c))
        elif op == "grouped" and self.image and c % 2 == 0:
            self._dense(r, x, r.choice((8, 12)), groups=2)
        elif op == "summary":
            self._add("add_mean", (x, self._like(r, x)), c)
        elif op == "move":
            self._add(r.choice(("flip", "roll", "swap")), (x,), c)
        elif op == "squeeze":
            self._add("squeeze", (x,), c, nn.Linear(c, c))
        elif op == "scale":
            self._add("scale", (x,), c, nn.ParameterList([nn.Parameter(torch.rand(c) + 0.5)]))

    def forward(self, x: Tensor) -> Tensor:
        values = {"x": x}
        for step in self.steps:
            values[step.name] = self._run(step, *(values[name] for name in step.inputs))
        y = torch.cat([values[name] for name in self.ends], self.dim)
        return self.head(y.mean((2, 3)) if self.image else y)

    def _run(self, step: Step, x: Tensor, *more: Tensor) -> Tensor:
        n, d = step.numbers, self.dim
        if step.op == "squeeze":
            gate = getattr(self, step.module)(x.mean((2, 3)) if self.image else x.mean(1)).sigmoid()
            return x * (gate[:, :, None, None] if self.image else gate[:, None])
        if step.op == "scale":
            factor = getattr(self, step.module)[0]
            return x * (factor[:, None, None] if self.image else factor)
        if step.module:
            return getattr(self, step.module)(x)
        match step.op:
            case "relu" | "silu" | "softplus":
                return getattr(F, step.op)(x)
            case "add":
                return x + more[0]
            case "mul":
                return x * more[0]
            case "gate":
                return x * more[0].sigmoid()
            case "maximum":
                return torch.maximum(x, more[0])
            case "add_mean":
                return x + more[0].mean((2, 3) if self.image else 1, keepdim=True)
            case "cat":
                return torch.cat((x, *more), d)
            case "part":
                return x.chunk(n["of"], d)[n["take"]]
            case "slice":
                return x.narrow(d, n["start"], n["stop"] - n["start"])
            case "flip":
                return x.flip(d)
            case "roll":
                return x.roll(2, d)
            case "swap":
                return torch.cat(x.chunk(2, d)[::-1], d)
            case _:
                return torch.tanh(x)
