"""Which layers of a model are one product with a weight of their own: read off the operations of one run.

A layer can be swapped for one that computes the same from packed zeros if its module does nothing but multiply its
input by its weight (and add its bias), and if nobody else reads that weight. Both are seen in one run of the model, and
so is what may be drawn into the layer: a batch normalization, or a ReLU or GELU, that is a module of its own and the
only reader of what the layer returns. No class of module is known by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core.errors import listed
from prunus.core.task import Example
from prunus.graph.running import call, tensors_in
from prunus.measure.inputs import HOOK_TABLES, as_found, device_of

Activation = Literal["none", "relu", "gelu"]

# What a layer may do beside its product and adding its bias: change views of its input, its weight and its output.
_VIEWS = {"t", "transpose", "permute", "view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze"}
_VIEWS |= {"clone", "detach", "alias", "contiguous"}
_PRODUCTS = {"addmm", "mm", "linear", "convolution"}
# A whole layer of nn.TransformerEncoder: the weights are read past the modules that hold them.
_FUSED = "_transformer_encoder_layer_fwd"
_UNFUSED = (
    "With torch.backends.mha.set_fastpath_enabled(False), which has to stay so while the packed model runs, the two "
    "feed-forward layers can be packed"
)


class Seen(NamedTuple):
    """A tensor that was an argument: its memory, and the view of it."""

    key: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class Event(NamedTuple):
    """One ATen operation: its name, the module that was running, its arguments by name, and what it read and made."""

    name: str
    path: str
    said: Mapping[str, Any]
    reads: frozenset[int]
    makes: frozenset[int]


class Call(NamedTuple):
    """One call of a module: the memory of its input and of its output, if it was called with one tensor for one."""

    given: int | None
    returned: int | None


@dataclass(frozen=True)
class Site:
    """A layer that can be swapped.

    Attributes:
        path: the module's path in the model.
        kind: what it computes.
        transposed: the weight is stored as `[in, out]`.
        stride, padding, dilation: of a convolution.
        norm: path of the batch normalization that alone reads what the layer returns.
        eps: epsilon of that normalization.
        activation: what alone reads the result, and the path of the module that computes it.
    """

    path: str
    kind: Literal["linear", "conv2d"]
    transposed: bool = False
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    norm: str | None = None
    eps: float = 0.0
    activation: Activation = "none"
    activation_path: str | None = None


@dataclass
class Reading:
    """What one run told: its output, the layers, and for every other weight with zeros why it stays as it is."""

    outputs: list[Tensor]
    sites: dict[str, Site] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)


class _Recorder(TorchDispatchMode):
    """Every operation, without holding any of its tensors."""

    def __init__(self, path: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.path = path
        self.events: list[Event] = []
        self.refs: dict[int, StorageWeakRef] = {}  # kept, so that no address is given to two memories

    def key(self, tensor: Tensor) -> int | None:
        """A number for the memory of a tensor; None where it has none that can be told."""
        try:
            ref = StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):
            return None
        self.refs.setdefault(ref.cdata, ref)
        return int(ref.cdata)

    def keys(self, value: Any) -> frozenset[int]:
        return frozenset(k for t in tensors_in(value) if (k := self.key(t)) is not None)

    def alive(self, key: int) -> bool:
        """Whether anybody still holds the memory."""
        return not self.refs[key].expired()

    def _said(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return tuple(value) if isinstance(value, list) else value
        key = self.key(value)
        return None if key is None else Seen(key, tuple(value.shape), value.stride(), int(value.storage_offset()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and note it."""
        kwargs = kwargs or {}
        names = [a.name for a in func._schema.arguments]
        said = {n: self._said(v) for n, v in (*zip(names, args, strict=False), *kwargs.items())}
        said = {n: v for n, v in said.items() if next(tensors_in(v), None) is None}
        reads = self.keys((args, kwargs))
        out = func(*args, **kwargs)
        path = self.path[-1] if self.path else ""
        self.events.append(Event(func._schema.name.rpartition("::")[2], path, said, reads, self.keys(out)))
        return out


class Run:
    """One run of a model, taken apart by module and by memory.

    Attributes:
        model: what was run.
        outputs: every tensor that it returned.
        events: its operations in order, those of the modules below included.
        calls: the calls of each module.
    """

    def __init__(self, model: nn.Module, example: Example | Tensor) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.hooked = {n for n, m in self.modules.items() if any(getattr(m, table, None) for table in HOOK_TABLES)}
        self.calls: dict[str, list[Call]] = {n: [] for n in self.modules}
        path: list[str] = []
        recorder = _Recorder(path)
        with as_found(model, device_of(model, example), inference=False):
            with self._noted(recorder), recorder:
                outputs = list(tensors_in(call(model, example, path)))
            self.outputs = [t.detach() for t in outputs]
            self.events = recorder.events
            held = {k for e in self.events for k in e.makes if recorder.alive(k)}
        self.held: set[int] = held
        self.memory = {n: recorder.key(t) for n, t in self._tensors()}
        self.inside: dict[str, list[Event]] = {}
        self.readers: dict[int, list[Event]] = {}
        for event in self.events:
            self.inside.setdefault(event.path, []).append(event)
            for key in event.reads:
                self.readers.setdefault(key, []).append(event)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.model.named_parameters(remove_duplicate=False)
        yield from self.model.named_buffers(remove_duplicate=False)

    @contextmanager
    def _noted(self, recorder: _Recorder) -> Iterator[None]:
        names = {id(m): n for n, m in self.modules.items()}

        def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
            if id(module) in names:
                alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
                given = recorder.key(args[0]) if alone else None
                returned = recorder.key(out) if isinstance(out, Tensor) else None
                self.calls[names[id(module)]].append(Call(given, returned))

        handle = nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            nn.modules.module._global_forward_hooks_with_kwargs.pop(handle.id, None)  # which `remove` leaves behind

    def only(self, path: str) -> Event | None:
        """The one operation of a module, those that read nothing left out."""
        found = [e for e in self.inside.get(path, []) if e.reads]
        return found[0] if len(found) == 1 else None

    def scripted(self, path: str) -> bool:
        """Whether a module, or one around it, is TorchScript."""
        parts = path.split(".")
        around = [".".join(parts[:n]) for n in range(len(parts) + 1)]
        return any(isinstance(self.modules[p], torch.jit.ScriptModule) for p in around)

    def leaf(self, path: str) -> nn.Module | None:
        """The module, if it has neither children nor hooks."""
        module = self.modules[path]
        return None if path in self.hooked or any(True for _ in module.children()) else module


def read(model: nn.Module, example: Example | Tensor, least: float, also: Collection[str] = ()) -> Reading:
    """Run the model once and tell its layers apart.

    Args:
        model: in evaluation mode; it is left as it was.
        example: an input.
        least: weights with a smaller share of zeros than this, and such without any, are not looked at.
        also: paths of modules whose weights are looked at in any case.

    Returns: every weight of two or more axes with so many zeros is either in `sites`, by its module's path, or in
        `left`, by its own name, with the reason.
    Cost: one forward pass with a Python call per operation.
    """
    run = Run(model, example)
    found = Reading(run.outputs)
    shared: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(p), []).append(name)
    for name, p in model.named_parameters():
        if p.dim() < 2 or not p.is_floating_point() or p.numel() == 0:
            continue
        if zeros(p) < max(least, 1 / p.numel()) and name.rpartition(".")[0] not in also:
            continue
        site = _site(run, name, p, shared[id(p)])
        if isinstance(site, str):
            found.left[name] = site
        else:
            found.sites[site.path] = _followed(run, site)
    return found


def zeros(weight: Tensor) -> float:
    """The share of a tensor's entries that are zero."""
    return 1.0 - int(torch.count_nonzero(weight.detach())) / weight.numel()


def _site(run: Run, name: str, weight: Tensor, names: list[str]) -> Site | str:
    """The layer that a weight belongs to, or why it is none."""
    path, _, leaf = name.rpartition(".")
    key = run.memory[name]
    readers = run.readers.get(key, []) if key is not None else []
    owner = f"{path or 'the model'} ({type(run.modules[path]).__name__})"
    if not readers:
        return "the example's run did not read it"
    if len({id(run.model.get_submodule(n.rpartition(".")[0])) for n in names}) > 1:
        return f"tied: {listed(names)} are one tensor"
    others = sorted({f"aten.{e.name} in {e.path or 'the model'}" for e in readers if e.path != path})
    if others:
        hint = f". {_UNFUSED}" if any(e.name == _FUSED for e in readers) else ""
        return f"read outside its own layer, by {listed(others, 2)}{hint}"
    module = run.leaf(path)
    if module is None:
        why = "has hooks, which a packed layer would not run" if path in run.hooked else "has modules inside"
        return f"{owner} {why}"
    if run.scripted(path):
        return f"{owner} is TorchScript, whose modules cannot be replaced"
    own = [n for n, _ in (*module.named_parameters(), *module.named_buffers())]
    if leaf != "weight" or not set(own) <= {"weight", "bias"}:
        return f"{owner} is more than a weight and a bias: it holds {listed(own)}"
    events = run.inside[path]
    products = [e for e in events if key in e.reads and e.name in _PRODUCTS]
    bias = run.memory.get(f"{path}.bias" if path else "bias")
    rest = sorted({e.name for e in events if e.name not in _VIEWS | _PRODUCTS and not _adds(e, bias)})
    calls = run.calls[path]
    if rest or len(products) != len(calls) or sum(e.name in _PRODUCTS for e in events) != len(calls):
        which = listed([f"aten.{n}" for n in rest]) or "another number of products than calls"
        return f"{owner} is not one product with it: {which}"
    if any(c.given is None or c.returned is None for c in calls):
        return f"{owner} is called with more than one tensor"
    sites = {_product(path, weight, e) for e in products}
    return sites.pop() if len(sites) == 1 else f"{owner} uses it in {len(sites)} different ways"


def _adds(event: Event, bias: int | None) -> bool:
    """Whether an operation adds the bias to a tensor."""
    return event.name in ("add", "add_") and bias in event.reads and event.said.get("alpha", 1) == 1


def _product(path: str, weight: Tensor, event: Event) -> Site | str:
    """What one operation computes with the weight; a string where the kernels do not."""
    said = event.said
    if event.name == "convolution":
        if weight.dim() != 4:
            return f"a convolution over {weight.dim() - 2} axes: the kernels do those over two"
        if said["transposed"] or said["groups"] != 1:
            what = "a transposed convolution" if said["transposed"] else f"a convolution in {said['groups']} groups"
            return f"{what}: the kernels do ordinary ones in one group"
        stride, padding, dilation = ((v * 2)[:2] for v in (said["stride"], said["padding"], said["dilation"]))
        return Site(path, "conv2d", stride=stride, padding=padding, dilation=dilation)
    seen = {"linear": "weight", "mm": "mat2", "addmm": "mat2"}[event.name]
    matrix = said.get(seen)
    if weight.dim() != 2 or not isinstance(matrix, Seen) or not weight.is_contiguous():
        return "its product is not one of matrices as they are stored"
    if event.name == "addmm" and (said.get("alpha", 1) != 1 or said.get("beta", 1) != 1):
        return "its product is scaled"
    rows, columns = weight.shape
    if event.name == "linear":
        matrix = matrix._replace(shape=matrix.shape[::-1], stride=matrix.stride[::-1])
    # mat2 is [in, out]: the weight's transpose, or the weight itself.
    if matrix.shape == (columns, rows) and matrix.stride == (1, columns):
        return Site(path, "linear")
    if matrix.shape == (rows, columns) and matrix.stride == (columns, 1):
        return Site(path, "linear", transposed=True)
    return "its product is with a part of it"


def _followed(run: Run, site: Site) -> Site:
    """The layer with what can be drawn into it: batch normalization, then an activation."""
    norm, eps = None, 0.0
    last = site.path
    if site.kind == "conv2d":
        after = _sole_reader(run, last)
        if after is not None:
            found = _batch_norm(run, after)
            if found is not None:
                norm, eps, last = after, found, after
    after = _sole_reader(run, last)
    activation = None if after is None else _activation(run, after)
    if activation is None:
        return _with(site, norm, eps, "none", None)
    return _with(site, norm, eps, activation, after)


def _with(site: Site, norm: str | None, eps: float, activation: Activation, path: str | None) -> Site:
    where = (site.path, site.kind, site.transposed, site.stride, site.padding, site.dilation)
    return Site(*where, norm, eps, activation, path)


def _sole_reader(run: Run, path: str) -> str | None:
    """The module that alone reads what a module returned in its only call, with one operation; None if there is none.

    What somebody still holds after the run (the model's output, a cache) has another reader that no operation shows,
    unless the one operation overwrote it.
    """
    if len(run.calls[path]) != 1 or path in run.hooked:
        return None
    out = run.calls[path][0].returned
    if out is None:
        return None
    readers = [e for e in run.readers.get(out, []) if e.path != path]
    if not readers:
        return None
    first, after = readers[0], readers[0].path
    if run.leaf(after) is None or run.only(after) is None or len(run.calls[after]) != 1:
        return None
    if run.calls[after][0].given != out or run.calls[after][0].returned not in first.makes:
        return None
    overwritten = out in first.makes
    return after if overwritten or (len(readers) == 1 and out not in run.held) else None


def _batch_norm(run: Run, path: str) -> float | None:
    """Epsilon of a module that normalizes by its own running statistics; None for any other module."""
    event, module = run.only(path), run.modules[path]
    if event is None:
        return None
    said = event.said
    if "batch_norm" not in event.name or said.get("training") or not isinstance(said.get("eps"), float):
        return None
    for name in ("weight", "bias", "running_mean", "running_var"):
        seen, tensor = said.get(name), getattr(module, name, None)
        key = run.memory.get(f"{path}.{name}" if path else name)
        if (seen is None) != (tensor is None) or (seen is not None and (seen.key != key or key is None)):
            return None
        if seen is not None and len(run.readers[seen.key]) != 1:
            return None
    return None if said.get("running_mean") is None else float(said["eps"])


def _activation(run: Run, path: str) -> Activation | None:
    """What a module without weights computes, if it is an activation that the kernels know."""
    event = run.only(path)
    if event is None or any(True for _ in run.modules[path].parameters()):
        return None
    if event.name in ("relu", "relu_"):
        return "relu"
    return "gelu" if event.name == "gelu" and event.said.get("approximate", "none") == "none" else None
