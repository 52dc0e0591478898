"""A model whose forward has sizes written into its code, as an exported graph in which they are attributes.

Where a forward says `reshape(batch, length, 768)` there is nothing that could be repaired on the user's own class. The
graph that `torch.export` makes of the same model has such numbers in its nodes; here they become integers that the
graph's module keeps, so that it is traced, pruned, compacted, saved and loaded as any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.core.errors import StructureError
from prunus.core.task import Example, as_call
from prunus.graph.running import FAILURES, mapped, quiet, unwrap

# Operations with sizes among their arguments. In all others a number means something else (a kernel, an axis, a power).
_SIZED = frozenset(
    (
        "view", "reshape", "_unsafe_view", "expand", "unflatten", "split", "split_with_sizes", "slice", "narrow",
        "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty", "constant_pad_nd", "pad",
    )
)  # fmt: skip
_ARITHMETIC = frozenset(("mul", "add", "sub", "floordiv"))


def exported(model: nn.Module, example: Example | Tensor) -> fx.GraphModule:
    """The model as a graph module with the same parameter names, in which sizes are integer attributes.

    The graph holds what the model does in evaluation mode: it can be trained further, but dropout is off and batch
    normalization uses its running statistics. The batch size stays free where `torch.export` can show that it is. The
    parameters are the model's own (not copied); pruning works on copies as always. Cost: one `torch.export`, seconds.

    Raises:
        StructureError: `torch.export` cannot make a graph of this model (data-dependent control flow, for example).
    """
    model = unwrap(model)
    program = _program(model, example)
    whole = program.module(check_guards=False)
    assert isinstance(whole, fx.GraphModule)
    for node in list(whole.graph.nodes):
        if node.op == "call_function" and _sized(node):
            _lift(whole, node)
    whole.graph.lint()
    graph = fx.GraphModule(whole, whole.graph, class_name=f"Exported{type(model).__name__}")
    return graph.eval()


def _program(model: nn.Module, example: Example | Tensor) -> Any:
    args, kwargs = as_call(example)
    errors: list[str] = []
    for free in (True, False):
        inputs, named = args, dict(kwargs)
        shapes: Any = None
        if free:
            # A batch of one is taken for a constant.
            sizes = {t.shape[0] for t in _tensors((args, kwargs)) if t.dim()}
            if sizes == {1}:
                inputs, named = _doubled(args), _doubled(named)
            dynamic = torch.export.Dim.AUTO
            shapes = _shapes(named, dynamic) if named and not inputs else _shapes(inputs, dynamic)
            if named and inputs:
                continue
        try:
            with quiet(model):
                return torch.export.export(model, inputs, named, dynamic_shapes=shapes)
        except (*FAILURES, torch._dynamo.exc.TorchDynamoException) as error:
            errors.append(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    raise StructureError(f"torch.export makes no graph of {type(model).__name__}: {errors[-1]}")


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    torch.utils._pytree.tree_map_only(Tensor, found.append, value)
    return found


def _doubled(value: Any) -> Any:
    return mapped(value, lambda t: t.repeat(2, *(1 for _ in t.shape[1:])) if t.dim() else t)


def _shapes(value: Any, dynamic: Any) -> Any:
    """The first axis of every tensor is free, in the form that `torch.export` wants."""
    if isinstance(value, Tensor):
        return {0: dynamic} if value.dim() else None
    if isinstance(value, Mapping):
        return {k: _shapes(v, dynamic) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_shapes(v, dynamic) for v in value)
    return None


def _sized(node: fx.Node) -> bool:
    """Whether numbers among the arguments may be sizes."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__ in _SIZED
    return getattr(target, "__name__", "") in _ARITHMETIC and getattr(target, "__module__", "") == "_operator"


def _lift(whole: fx.GraphModule, node: fx.Node) -> None:
    """Replace the sizes among the arguments by attributes named after the node."""
    count = 0

    def attribute(value: Any) -> Any:
        nonlocal count
        if isinstance(value, list | tuple):
            return type(value)(attribute(v) for v in value)
        if type(value) is not int or not 1 < value < _ENDLESS:
            return value
        name = f"size_{node.name}_{count}"
        count += 1
        setattr(whole, name, value)
        with whole.graph.inserting_before(node):
            return whole.graph.create_node("get_attr", name)

    if isinstance(node.target, torch._ops.OpOverload):
        names = [argument.name for argument in node.target._schema.arguments]
        node.args = tuple(attribute(a) if n in _SIZES else a for a, n in zip(node.args, names, strict=False))
    else:
        node.args = tuple(attribute(a) for a in node.args)


_SIZES = frozenset(("size", "shape", "sizes", "split_size", "split_sizes", "start", "end", "length", "pad"))
_ENDLESS = 2**31
"""From here on a bound of a slice means the end of the axis."""
