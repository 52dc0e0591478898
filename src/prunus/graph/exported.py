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
        "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "group_norm",
        "layer_norm", "rms_norm",
    )
)  # fmt: skip
_CHECKS = frozenset((torch.ops.aten._assert_tensor_metadata.default,))
"""Operations without a result, that fail where the graph is run in another type or on another device."""
_ARITHMETIC = frozenset(("mul", "add", "sub", "floordiv"))


def exported(model: nn.Module, example: Example | Tensor) -> fx.GraphModule:
    """The model as a graph module with the same parameter names, in which sizes are integer attributes.

    The graph holds what the model does in evaluation mode, for inputs as large and of the type of the example, on its
    device; only the batch size stays free, where `torch.export` can show that it is. It can be trained further: dropout
    and batch normalization follow `train()` and `eval()` as on the model, but branches that a forward takes in one of
    them only (stochastic depth, auxiliary classifiers, dropout inside fused attention) are those of evaluation. The
    parameters are the model's own (not copied); pruning works on copies as always. Cost: one `torch.export`, two where
    something follows the mode; seconds.

    Raises:
        StructureError: `torch.export` cannot make a graph of this model (data-dependent control flow, for example).
    """
    model = unwrap(model)
    whole = _program(model, example).module(check_guards=False)
    assert isinstance(whole, fx.GraphModule)
    _follow_mode(whole, model, example)
    _unshare(whole.graph)
    cut = _cut_tables(whole)
    for node in list(whole.graph.nodes):
        if node.target in _CHECKS:
            whole.graph.erase_node(node)
        elif node.op == "call_function" and _sized(node) and node not in cut:
            _lift(whole, node)
    whole.graph.lint()
    graph = fx.GraphModule(whole, whole.graph, class_name=f"Exported{type(model).__name__}")
    return graph.eval()


def _program(model: nn.Module, example: Example | Tensor, training: bool = False) -> Any:
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
                for module in model.modules():
                    module.training = training
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


def _unshare(graph: fx.Graph) -> None:
    """A copy of each product or sum of sizes for each of its uses.

    `torch.export` computes `batch * heads` once for all layers, which would tie the heads of all of them.
    """
    for node in reversed(graph.nodes):
        if node.op == "call_function" and _arithmetic(node):
            for user in list(node.users)[1:]:
                with graph.inserting_before(user):
                    user.replace_input_with(node, graph.node_copy(node))


def _arithmetic(node: fx.Node) -> bool:
    target = node.target
    return getattr(target, "__name__", "") in _ARITHMETIC and getattr(target, "__module__", "") == "_operator"


def _follow_mode(whole: fx.GraphModule, model: nn.Module, example: Example | Tensor) -> None:
    """Let what is off in evaluation and on in training (dropout, batch statistics) follow the graph's own mode.

    Which operations these are comes from a second graph, of training: the same operations of the same modules, in the
    same number.
    """
    off = {key: nodes for key, nodes in _flagged(whole.graph).items() if not all(_flag(n) for n in nodes)}
    if not any(_flag(node) is False and node.args[1] != 0.0 for nodes in off.values() for node in nodes):
        return
    try:
        on = _flagged(_program(model, example, training=True).graph)
    except StructureError:
        return  # a model that does not train on this example
    for key, nodes in off.items():
        if len(on.get(key, ())) != len(nodes):
            continue
        for node, twin in zip(nodes, on[key], strict=True):
            if _flag(node) is False and _flag(twin) is True:
                with whole.graph.inserting_before(node):
                    mode = whole.graph.create_node("get_attr", "training")
                node.update_arg(_place(node), mode)


def _flagged(graph: fx.Graph) -> dict[tuple[Any, str], list[fx.Node]]:
    """Operations that are told whether this is training, by kind and module, in the order in which they run."""
    found: dict[tuple[Any, str], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and _place(node) >= 0:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            found.setdefault((node.target, stack[-1][0] if stack else ""), []).append(node)
    return found


def _place(node: fx.Node) -> int:
    """Which argument says whether this is training; -1 if none does."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return -1
    names = [argument.name for argument in node.target._schema.arguments[: len(node.args)]]
    return next((i for i, name in enumerate(names) if name in ("train", "training")), -1)


def _flag(node: fx.Node) -> Any:
    return node.args[_place(node)]


def _cut_tables(whole: fx.GraphModule) -> set[fx.Node]:
    """Slices of parameters of which a part is never read: its bounds are positions in a table, not sizes."""
    plain: set[fx.Node] = set()  # computed from parameters, buffers and numbers alone
    slices: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in whole.graph.nodes:
        if node.op == "get_attr" or (node.op == "call_function" and all(n in plain for n in node.all_input_nodes)):
            plain.add(node)
        if node.target is torch.ops.aten.slice.Tensor and node.args[0] in plain:
            slices.setdefault((node.args[0], node.args[1] if len(node.args) > 1 else 0), []).append(node)
    cut: set[fx.Node] = set()
    for (source, dim), own in slices.items():
        table = source.meta.get("val")
        read = torch.zeros(table.shape[dim] if isinstance(table, Tensor) else 1, dtype=torch.bool)
        read[:] = any(user not in own for user in source.users)
        for node in own if isinstance(table, Tensor) else ():
            read[slice(*node.args[2:])] = True
        if not bool(read.all()):
            cut.update(own)
    return cut


def _sized(node: fx.Node) -> bool:
    """Whether numbers among the arguments may be sizes."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__ in _SIZED
    return _arithmetic(node)


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


_SIZES = frozenset(
    (
        "size", "shape", "sizes", "split_size", "split_sizes", "start", "end", "length", "pad", "groups", "num_groups",
        "normalized_shape",
    )
)  # fmt: skip
_ENDLESS = 2**31
"""From here on a bound of a slice means the end of the axis."""
