"""Layers whose weights are packed without their zeros, and the way back to dense ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError
from prunus.deploy import kernels
from prunus.deploy.kernels.ops import conv2d_with, linear_with
from prunus.deploy.sparse_trace import Site
from prunus.graph.duplicate import duplicate

_PARTS = ("values", "index", "counts", "starts")
_PLAIN = (int, float, str, tuple, bool)


class DrawnIn(nn.Module):
    """What is left where a normalization or an activation was drawn into the layer before it: nothing happens here.

    Attributes:
        original: the module as it was. Its tensors stay part of the state, and it is never called.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.original = original
        self.training = False

    def forward(self, x: Tensor) -> Tensor:
        """The input."""
        return x


class PackedLayer(nn.Module):
    """A linear layer or a convolution whose weight is packed; for inference on the CPU only.

    Its state is the packed weight and the bias; a state that was packed in another form loads as well. `weight` is
    unpacked each time it is read.

    Attributes:
        site: what the layer computes.
        form: how the weight is packed.
        shape: of the packed weight, `[out, in]` or `[out, in, kh, kw]`.
        values, index, counts, starts: see `kernels.Packed`.
        bias: what is added; with the normalization, where one was folded in.
        unfolded: the nonzero values of the weight as they were before that.
        own_bias: the bias as it was before that.
    """

    values: Tensor
    index: Tensor
    counts: Tensor
    starts: Tensor
    bias: Tensor | None
    unfolded: Tensor | None
    own_bias: Tensor | None

    def __init__(self, site: Site, original: nn.Module, packed: kernels.Packed, bias: Tensor | None) -> None:
        super().__init__()
        self.site, self.form, self.shape = site, packed.form, packed.shape
        self.training = False
        taken = {*vars(self), *dir(type(self)), *_PARTS, "bias", "unfolded", "own_bias"}
        for name, value in vars(original).items():
            if not name.startswith("_") and type(value) in _PLAIN and name not in taken:
                setattr(self, name, value)  # `in_features`, `stride`: what other code may ask for
        shell = copy.copy(original)
        shell._parameters = dict.fromkeys(original._parameters)
        grads = {n: p.requires_grad for n, p in original._parameters.items() if p is not None}
        self._shell = (shell, grads)  # in a tuple, and so no child and no part of the state
        for name, tensor in zip(_PARTS, packed.tensors, strict=True):
            self.register_buffer(name, tensor)
        for name in ("bias", "unfolded", "own_bias"):
            self.register_buffer(name, bias if name == "bias" else None)

    @property
    def packed(self) -> kernels.Packed:
        """The weight as the kernels take it."""
        return kernels.Packed(self.values, self.index, self.counts, self.starts, self.shape, self.form)

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, what is kept to undo a folded normalization included."""
        return self.packed.bytes + (0 if self.unfolded is None else self.unfolded.nbytes)

    @property
    def weight(self) -> Tensor:
        """The dense weight as the layer had it. Cost: unpacks it at every access."""
        dense = self.packed.dense()
        if self.unfolded is not None:
            dense[dense != 0] = self.unfolded
        return dense.t().contiguous() if self.site.transposed else dense

    def dense(self) -> nn.Module:
        """The dense layer as it was: same class, same values; where zeros had a sign it is lost."""
        shell, grads = self._shell
        found = copy.copy(shell)
        tensors = {"weight": self.weight, "bias": self.bias if self.unfolded is None else self.own_bias}
        found._parameters = dict.fromkeys(shell._parameters)
        for name, grad in grads.items():
            tensor = tensors[name]
            assert tensor is not None
            found._parameters[name] = nn.Parameter(tensor.clone(), grad)
        found.training = self.training
        return found

    def forward(self, x: Tensor) -> Tensor:
        """What the layer computed, by the sparse kernels. Errors: `SpecError` in training mode."""
        if self.training:
            raise SpecError("packed layers are for inference: call eval(), or densify(model) to train the dense model")
        site = self.site
        if site.kind == "linear":
            rows, cols = self.shape
            return linear_with(x, self._parts(), self.bias, rows, cols, self.form, site.activation, 0)
        where = (list(self.shape), list(site.stride), list(site.padding), list(site.dilation))
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        y = conv2d_with(batch, self._parts(), self.bias, *where, self.form, site.activation, 0)
        return y if x.dim() == 4 else y.squeeze(0)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.values, self.index, self.counts, self.starts

    def extra_repr(self) -> str:
        """Shape, form and what was drawn in."""
        drawn = "" if self.site.activation == "none" else f", {self.site.activation}"
        folded = ", normalization folded in" if self.site.norm else ""
        return f"{'x'.join(map(str, self.shape))}, form={self.form}, bias={self.bias is not None}{folded}{drawn}"

    def get_extra_state(self) -> Tensor:
        """The form, as bytes."""
        return torch.tensor(list(self.form.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing: `_load_from_state_dict` has read the form together with what is packed in it."""

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, local: Any, strict: bool, missing: Any, unexpected: Any, errors: Any
    ) -> None:
        if f"{prefix}weight" in state:
            errors.append(
                f"{prefix}weight is dense and the layer is packed: load it into the dense model, then sparsify that"
            )
            return
        if not any(f"{prefix}{name}" in state for name in (*_PARTS, "_extra_state")):
            super()._load_from_state_dict(state, prefix, local, strict, missing, unexpected, errors)
            return
        try:
            packed = self._read(state, prefix)
        except (DataError, KeyError) as error:
            errors.append(f"{prefix.rstrip('.')}: {error}")
            return
        self.form = packed.form
        for name, tensor in zip(_PARTS, packed.tensors, strict=True):
            self._buffers[name] = tensor
        if self.unfolded is not None:
            self.unfolded = state[f"{prefix}unfolded"].to(self.unfolded.dtype).clone()
        super()._load_from_state_dict(state, prefix, local, strict, missing, unexpected, errors)

    def _read(self, state: Mapping[str, Any], prefix: str) -> kernels.Packed:
        """The packed weight of a state, checked in full before any kernel sees it."""
        values, index, counts, starts = (state[f"{prefix}{name}"].detach().cpu().clone() for name in _PARTS)
        form = bytes(state[f"{prefix}_extra_state"].tolist()).decode(errors="replace")
        try:
            packed = kernels.Packed(values, index, counts, starts, self.shape, form)
            packed.check()
        except SpecError as error:
            raise DataError(str(error)) from error
        if self.unfolded is not None:
            count = int(packed.dense().count_nonzero())
            if state[f"{prefix}unfolded"].shape != (count,):
                raise DataError(f"{count} weights need as many values from before the normalization was folded in")
        return packed

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLayer:
        """Refuse other types and devices, which the kernels have no packed form for."""
        probe = fn(self.values[:0])
        if probe.dtype != self.values.dtype or probe.device.type != "cpu":
            raise SpecError(
                "packed layers stay on the CPU in the type they were packed in: densify(model), then move or convert"
            )
        return self


def pack_layer(site: Site, module: nn.Module, norm: nn.Module | None, form: str, dtype: torch.dtype) -> PackedLayer:
    """A layer packed, with a batch normalization by running statistics folded in.

    Args:
        site: what the layer computes.
        module: the dense layer; not changed.
        norm: the normalization that follows.
        form, dtype: of the packed values.

    Cost: the weight is packed once; with a normalization its nonzero values are kept a second time.
    Errors: `SpecError` for a weight that does not have the form. Ask `can_fold` before.
    """
    weight, bias = tensors_of(module)
    matrix = (weight.t() if site.transposed else weight) + 0.0  # minus zero becomes zero
    if norm is None:
        return PackedLayer(site, module, kernels.pack(matrix, form, dtype), None if bias is None else bias.clone())
    folded, shift = fold(matrix, bias, norm, site.eps)
    found = PackedLayer(site, module, kernels.pack(folded, form, dtype), shift)
    found.unfolded = matrix[matrix != 0]
    found.own_bias = None if bias is None else bias.clone()
    return found


def can_fold(site: Site, module: nn.Module, norm: nn.Module) -> bool:
    """If folding the normalization in leaves the zeros where they are, so that it can be undone."""
    weight, bias = tensors_of(module)
    folded, shift = fold(weight, bias, norm, site.eps)
    return torch.equal(folded == 0, weight == 0) and bool(folded.isfinite().all() and shift.isfinite().all())


def fold(weight: Tensor, bias: Tensor | None, norm: nn.Module, eps: float) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that computes what `norm(convolution)` does; in float64, then rounded."""

    def wide(name: str, default: float) -> Tensor:
        value = getattr(norm, name)
        return torch.full((len(weight),), default, dtype=torch.float64) if value is None else value.detach().double()

    scale = wide("weight", 1.0) / (wide("running_var", 1.0) + eps).sqrt()
    start = 0.0 if bias is None else bias.double()
    shift = wide("bias", 0.0) + (start - wide("running_mean", 0.0)) * scale
    folded = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return folded.to(weight.dtype), shift.to(weight.dtype)


def densify(model: nn.Module) -> nn.Module:
    """The dense model that a packed one was made from, with the same values (minus zeros come back as zeros).

    Args:
        model: as `sparsify` made it, whether its state was loaded later or not; it is not changed.

    Returns: a copy in which every packed layer is the dense one it was, and normalizations and activations run again.
    Cost: one dense copy.
    """
    if isinstance(model, PackedLayer):
        return model.dense()
    found = duplicate(model)
    made: dict[int, nn.Module] = {}  # a layer that is known by several names stays one
    for parent in list(found.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, PackedLayer):
                if id(child) not in made:
                    made[id(child)] = child.dense()
                parent._modules[name] = made[id(child)]
            elif isinstance(child, DrawnIn):
                parent._modules[name] = child.original
    return found


def tensors_of(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a dense layer, detached."""
    weight, bias = module._parameters["weight"], module._parameters.get("bias")
    assert weight is not None
    return weight.detach(), None if bias is None else bias.detach()
