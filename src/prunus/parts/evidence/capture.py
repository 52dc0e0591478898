"""What flows through the weights of a run: the inputs, outputs and their gradients of every linear map that uses one.

No layer is known by its type: functions that multiply by a weight (`linear`, the convolutions, `matmul`, `addmm`) are
seen as they are called, whichever module calls them. So are stacks of matrices `[experts, ...]`, whether one of them is
taken out for a `linear` or all are multiplied by a `grouped_mm`; only evidence that asks for stacks is told of them. A
weight that meets the data in another way (inside a recurrent cell, through `torch.nn.MultiheadAttention`, computed by a
parametrization) is not seen, and evidence that needs it is undefined on its groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunus.core.errors import DataError
from prunus.core.evidence import SideBySide, Sources
from prunus.core.groups import Group, Member
from prunus.graph.running import identity
from prunus.parts.evidence.gradients import NO_BATCH
from prunus.parts.evidence.mode import evidence_mode
from prunus.parts.evidence.vectorized import every_sample, refuse_gradients

CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
PRODUCTS: set[Callable[..., Any]] = {
    *(torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__),
}
_T: Any = Tensor
TRANSPOSES: set[Callable[..., Any]] = {torch.t, Tensor.t, _T.T.__get__, _T.mT.__get__}
SWAPS: set[Callable[..., Any]] = {torch.transpose, Tensor.transpose, _T.mT.__get__}
GROUPED: set[Callable[..., Any]] = {
    f for f in (getattr(F, "grouped_mm", None), getattr(torch, "_grouped_mm", None)) if f
}


@dataclass(eq=False)
class Use:
    """One application of a weight to data, y = w x.

    Attributes:
        name: the weight's parameter name.
        bias: the bias's parameter name, where it is added in the same call.
        x: the input as it came, detached.
        y: the output, where outputs are captured.
        gx: dL/dx through this use alone, once a backward pass has run, where gradients are captured.
        gy: dL/dy, likewise.
        in_axis: the axis of the weight that is summed over.
        shares: of a stack of matrices, how many rows of x each of them multiplies, in order; empty otherwise.
        conv: stride, padding, dilation and groups of a convolution; None otherwise.
        kernel: the kernel's size, `()` where there is none.
    """

    name: str
    x: Tensor
    in_axis: int
    bias: str | None = None
    y: Tensor | None = None
    gx: Tensor | None = None
    gy: Tensor | None = None
    conv: dict[str, Any] | None = None
    kernel: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Into how many independent maps the use falls apart (grouped convolution, stack of experts)."""
        return len(self.shares) or (1 if self.conv is None else int(self.conv["groups"]))

    def by_channel(self, tensor: Tensor) -> Float[Tensor, "batch channels positions"]:
        """x, y or one of their gradients with the batch first, then channels, then everything else."""
        if self.conv is not None:
            whole = tensor if tensor.ndim == len(self.kernel) + 2 else tensor.unsqueeze(0)
            return whole.flatten(2)
        rows = tensor if tensor.ndim > 1 else tensor.unsqueeze(0)
        return rows.reshape(rows.shape[0], -1, rows.shape[-1]).transpose(1, 2)

    def columns(self) -> Float[Tensor, "groups samples in"]:
        """x as the rows that the weight matrix `[out, in*kernel]` multiplies, for each group of a grouped convolution.

        A convolution's are its patches: kernel size times the memory of x. Not for stacks, see `rows`.
        """
        if self.conv is None:
            return self.x.reshape(1, -1, self.x.shape[-1])
        x = self.x if self.x.ndim == len(self.kernel) + 2 else self.x.unsqueeze(0)
        conv, spatial = self.conv, len(self.kernel)
        x = F.pad(x, [n for pair in reversed(_margins(conv["padding"], self.kernel, conv["dilation"])) for n in pair])
        for axis, (size, stride, dilation) in enumerate(
            zip(self.kernel, conv["stride"], conv["dilation"], strict=True)
        ):
            x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
        x = x.reshape(x.shape[0], self.groups, -1, *x.shape[2:])  # batch, groups, channels, places, kernel
        places, kernel = range(3, 3 + spatial), range(3 + spatial, 3 + 2 * spatial)
        return x.permute(1, 0, *places, 2, *kernel).reshape(self.groups, -1, x.shape[2] * _product(self.kernel))

    def rows(self) -> Sequence[Float[Tensor, "samples in"]]:
        """The same for each group, and for each matrix of a stack, which may multiply none."""
        if not self.shares:
            return torch.unbind(self.columns())
        return torch.split(self.x.reshape(-1, self.x.shape[-1])[: sum(self.shares)], list(self.shares))


class Capture(TorchFunctionMode):
    """Sees every use of some parameters while it is active.

    Args:
        parameters: what to look for, by name.
        gradients: note dL/dx and dL/dy when a backward pass comes along.
        outputs: keep a copy of y.
        stacks: also see the uses of stacks of matrices.

    Attributes:
        uses: in the order of the calls.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        gradients: bool = False,
        outputs: bool = False,
        stacks: bool = False,
    ) -> None:
        super().__init__()
        self.stacks = stacks
        self.names = {id(p): n for n, p in parameters.items()}
        self.gradients, self.outputs = gradients, outputs
        self.uses: list[Use] = []
        self._turned: dict[int, tuple[Tensor, str]] = {}
        self._slices: dict[int, tuple[Tensor, str, int, int]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        use, place = self._seen(func, args, kwargs)
        if use is None and self.stacks:
            use = self._stack(func, args, kwargs)
        if use is None:
            result = func(*args, **kwargs)
            self._follow(func, args, kwargs, result)
            return result
        self.uses.append(use)
        if self.gradients and isinstance(x := _argument(args, kwargs, place), Tensor) and x.requires_grad:
            refuse_gradients(use.name, x)
            alias = x.view_as(x)  # another name for x, so that only what flows back through this use is seen
            alias.register_hook(_into(use, "gx"))
            args, kwargs = _replaced(args, kwargs, place, alias)
        y = func(*args, **kwargs)
        if self.gradients and y.requires_grad:
            y.register_hook(_into(use, "gy"))
        if self.outputs:
            use.y = every_sample(
                y, len(use.kernel) + 2 if use.conv else None
            ).clone()  # an activation may be computed in its place
        return y

    def _follow(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Remember what is a parameter turned, or a matrix of a stack."""
        if not args or not isinstance(args[0], Tensor) or id(args[0]) not in self.names:
            return
        p, name = args[0], self.names[id(args[0])]
        last = {*args[1:], *kwargs.values()} in (set(), {-1, -2}, {1, 2}) if func in SWAPS and p.ndim == 3 else False
        if last or (p.ndim == 2 and func in TRANSPOSES):
            self._turned[id(result)] = (result, name)
        elif p.ndim == 3 and func is Tensor.__getitem__:
            index = args[1]
            if isinstance(index, Tensor) and index.ndim == 0 and not index.is_floating_point():
                index = int(index)
            if isinstance(index, int):
                self._slices[id(result)] = (result, name, index % len(p), len(p))

    def _stack(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Use | None:
        """The use of a stack of matrices: of one that was taken out of it, or of all at once."""
        if func in GROUPED:
            x, weight = _argument(args, kwargs, (0, "input")), _argument(args, kwargs, (1, "mat2"))
            weight = kwargs.get("mat_b", weight)
            ends = _argument(args, kwargs, (2, "offs"))
            turned = self._turned.get(id(weight))
            name = turned[1] if turned is not None else self.names.get(id(weight))
            if name is None or weight.ndim != 3 or x.ndim != 2 or ends is None:
                return None
            stops = [0, *ends.tolist()]
            shares = tuple(b - a for a, b in pairwise(stops))
            return Use(name, x.detach(), 1 if turned is None else 2, shares=shares)
        if func is F.linear or func in PRODUCTS:
            weight = _argument(args, kwargs, (1, "weight" if func is F.linear else "other"))
            found = self._slices.get(id(weight))
            if found is None:
                return self._each(weight, _argument(args, kwargs, (0, "input")))
            _, name, index, count = found
            x = _argument(args, kwargs, (0, "input")).detach()
            rows = x.numel() // x.shape[-1] if x.numel() else 0
            shares = tuple(rows if i == index else 0 for i in range(count))
            return Use(name, x, 2 if func is F.linear else 1, shares=shares)
        return None

    def _each(self, weight: Any, x: Any) -> Use | None:
        """The use of a stack whose matrices each multiply rows of their own, of which those of zeros are left out: so
        is marked what goes to another expert.
        """
        turned = self._turned.get(id(weight))
        name = turned[1] if turned is not None else self.names.get(id(weight))
        if name is None or weight.ndim != 3 or x.ndim != 3 or len(x) != len(weight):
            return None
        there = (x.detach() != 0).any(-1)
        return Use(name, x.detach()[there], 1 if turned is None else 2, shares=tuple(there.sum(1).tolist()))

    def _seen(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Use | None, tuple[int, str]]:
        if func is F.linear or func in CONVOLUTIONS:
            weight, place = _argument(args, kwargs, (1, "weight")), (0, "input")
            name = self.names.get(id(weight))
            if name is None:
                return None, place
            bias = self.names.get(id(_argument(args, kwargs, (2, "bias"))))
            most = CONVOLUTIONS[func] + 2 if func in CONVOLUTIONS else None
            use = Use(name, every_sample(_argument(args, kwargs, place), most), 1, bias)
            if func in CONVOLUTIONS:
                use.kernel, use.conv = tuple(weight.shape[2:]), _convolution(args, kwargs, CONVOLUTIONS[func])
            return use, place
        if func is torch.addmm or func in PRODUCTS:
            first = 1 if func is torch.addmm else 0
            place, other = (first, "mat1" if first else "input"), _argument(args, kwargs, (first + 1, "mat2"))
            turned = self._turned.get(id(other))
            name = turned[1] if turned is not None else self.names.get(id(other))
            if name is None or other.ndim != 2:
                return None, place
            bias = self.names.get(id(args[0])) if first else None
            return Use(name, every_sample(_argument(args, kwargs, place)), 0 if turned is None else 1, bias), place
        return None, (0, "input")


def captured(
    sources: Sources,
    names: Iterable[str],
    *,
    gradients: bool = False,
    outputs: bool = False,
    stacks: bool = False,
    batches: Iterable[Any] | None = None,
    stay: bool = False,
) -> Iterator[dict[str, list[Use]]]:
    """The uses of parameters, one mapping per calibration batch: name -> its uses, in the order of the calls.

    With gradients, the loss is the task's and labels are read; without, only inputs. The model runs in evaluation mode
    unless the asking part has `train_mode=True`. Cost: a forward per batch, and a backward with gradients; the inputs
    of all named weights are in memory at once. Where several devices run batches (`Sources.crew`), what they have seen
    is laid where the weights are, unless it may `stay` where it was seen.
    """
    named = {n: sources.parameters[n] for n in names}
    # A bias is only named, so that whoever rebuilds a layer knows where its bias lies.
    known = {**{n: p for n, p in sources.parameters.items() if p.ndim == 1}, **named}
    train = bool(sources.settings.get("train_mode", False))
    given = sources.task.calibration() if batches is None else batches
    if sources.crew is not None and not gradients and not train:
        yield from _side_by_side(sources, sources.crew, known, named, given, stay, outputs=outputs, stacks=stacks)
        return
    empty = True
    for batch in given:
        empty = False
        with evidence_mode(sources.model, named if gradients else {}, sources.generator, train=train):
            with (
                torch.set_grad_enabled(gradients),
                Capture(known, gradients=gradients, outputs=outputs, stacks=stacks) as seen,
            ):
                if gradients:
                    loss = sources.task.loss_of(sources.model, batch)
                else:
                    sources.task.outputs(sources.model, batch)
            if gradients and loss.requires_grad:
                torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        yield _by_name(seen.uses, named)
    if empty:
        raise DataError(NO_BATCH)


def _side_by_side(
    sources: Sources,
    crew: SideBySide,
    known: Iterable[str],
    named: Mapping[str, Tensor],
    batches: Iterable[Any],
    stay: bool,
    **ways: bool,
) -> Iterator[dict[str, list[Use]]]:
    """What `captured` gives, of batches that several devices run."""

    def see(model: nn.Module, batch: Any) -> list[Use]:
        own = dict(model.named_parameters())
        with Capture({n: own[n] for n in known}, **ways) as seen:
            sources.task.outputs(model, batch)
        uses: list[Use] = seen.uses
        return uses

    empty = True
    for found in crew.each(see, batches):
        empty = False
        # As many seeds are drawn as if the batches ran one by one: what is random later does not depend on it.
        torch.randint(2**31, (1,), generator=sources.generator)
        if not stay:
            lay_(found, lambda use: named[use.name].device if use.name in named else use.x.device)
        yield _by_name(found, named)
        del found
    if empty:
        raise DataError(NO_BATCH)


def _by_name(uses: Iterable[Use], named: Mapping[str, Tensor]) -> dict[str, list[Use]]:
    found: dict[str, list[Use]] = {}
    for use in uses:
        # On no rows (the tokens of images that a text does not have) it is not used at all; stacks count such tokens.
        if use.name in named and (use.shares or use.x.numel()):
            found.setdefault(use.name, []).append(use)
    return found


def lay_(uses: Iterable[Use], to: Callable[[Use], torch.device]) -> None:
    """Lay what uses hold on other devices; what is one tensor stays one."""
    made: dict[Any, Tensor] = {}
    for use in uses:
        place = to(use)
        key = (place, identity(use.x))
        if key not in made:
            made[key] = use.x.to(place)
        use.x = made[key]
        use.y = None if use.y is None else use.y.to(place)


def consumers(group: Group, uses: Mapping[str, Sequence[Use]]) -> list[tuple[Member, Use]]:
    """The uses that read a group's units along the axis that they sum over: where its units act."""
    return [
        (member, use)
        for member in group.with_role("in")
        for use in uses.get(member.param, ())
        if member.dim == use.in_axis and member.unit is None and use.groups == 1
    ]


def by_unit(
    group: Group, member: Member, tensor: Float[Tensor, "batch channels positions"]
) -> Float[Tensor, "units batch values"]:
    """What belongs to each unit of a consumer's input (or its gradient): all channels it owns, at all positions."""
    index = member.positions(group.units).to(tensor.device)
    batch = tensor.shape[0]
    owned = tensor[:, index.reshape(-1)].reshape(batch, *index.shape, -1)
    return owned.transpose(0, 1).reshape(group.units, batch, -1)


def _into(use: Use, slot: str) -> Callable[[Tensor], None]:
    def note(gradient: Tensor) -> None:
        before = getattr(use, slot)
        setattr(use, slot, gradient.detach() if before is None else before + gradient.detach())

    return note


def _argument(args: tuple[Any, ...], kwargs: Mapping[str, Any], place: tuple[int, str]) -> Any:
    return args[place[0]] if len(args) > place[0] else kwargs.get(place[1])


def _replaced(
    args: tuple[Any, ...], kwargs: dict[str, Any], place: tuple[int, str], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    index, name = place
    if len(args) > index:
        return (*args[:index], value, *args[index + 1 :]), kwargs
    return args, {**kwargs, name: value}


def _convolution(args: tuple[Any, ...], kwargs: Mapping[str, Any], spatial: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for index, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1), (6, "groups", 1)):
        value = args[index] if len(args) > index else kwargs.get(name, default)
        one = isinstance(value, int)
        found[name] = (
            value if name == "groups" or isinstance(value, str) else (value,) * spatial if one else tuple(value)
        )
    return found


def _margins(
    padding: str | tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> list[tuple[int, int]]:
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        total = [(k - 1) * d for k, d in zip(kernel, dilation, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(int(p), int(p)) for p in padding]


def _product(sizes: Iterable[int]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total
