"""What the experts of a mixture add to its output, token by token; and the rows of the router that choose them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, pairwise
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from prunus.core.errors import DataError
from prunus.core.evidence import Evidence, GroupTensors, Reads, Sources
from prunus.core.groups import Member
from prunus.graph.mixture.group import ExpertGroup
from prunus.parts.evidence.capture import Capture, Use
from prunus.parts.evidence.mode import averaged_over_ranks, evidence_mode

_EVEN = 1e-3


class Contributed:
    """`collected[group]`: `[experts, 2]`, the sum over the tokens that an expert gets of |g| ||f||, and their number.

    f is what the expert's last linear map gives (with its bias), g what the mixture's output has of it. The output is
    linear in f, so g is read off one backward pass of the mixture alone, from ones: whatever the code around the
    experts looks like, in a list or in one tensor, sorted by expert or one by one. A token with g = 0 is not routed. A
    mixture whose experts' outputs go through more than a number per token (a normalization, a projection) within the
    module that holds the router has no such g, and of one whose last maps are not seen nothing is known: `collected`
    lacks both.

    Cost: a forward per batch, in which the inner activations of one mixture at a time are kept, and a backward through
    its last maps, with gradients as large as these.
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        groups = [g for g in sources.groups if isinstance(g, ExpertGroup)]
        self.collected = {g.name: torch.zeros(g.units, 2, dtype=torch.float64) for g in groups}
        self.scopes: dict[str, list[ExpertGroup]] = {}
        for group in groups:
            self.scopes.setdefault(group.scope, []).append(group)
        self.named = {m.param: sources.parameters[m.param] for g in groups for m in g.with_role("out", "bias")}
        empty = not groups
        for batch in sources.task.calibration() if groups else ():
            empty = False
            self._run(batch)
        if empty and groups:
            raise DataError("the calibration data yields no batch: pass at least one in Task(calib=...)")
        averaged_over_ranks(self.collected)
        self.collected = {n: t for n, t in self.collected.items() if bool(t[:, 1].any())}

    def _run(self, batch: Any) -> None:
        sources = self.sources
        with ExitStack() as stack:
            stack.enter_context(evidence_mode(sources.model, self.named, sources.generator))
            seen = stack.enter_context(Capture(self.named, gradients=True, outputs=True, stacks=True))
            for scope in self.scopes:
                handle = sources.model.get_submodule(scope).register_forward_hook(self._ended(scope, seen))
                stack.callback(handle.remove)
            sources.task.outputs(sources.model, batch)

    def _ended(self, scope: str, seen: Capture) -> Callable[[nn.Module, Any, Any], Any]:
        """What is done when a mixture has run: add up what its experts gave, and let go of the graph."""

        def ended(_module: nn.Module, _inputs: object, output: Any) -> Any:
            for group in self.scopes[scope]:
                members = {m.param: m for m in group.with_role("out")}
                own = [u for u in seen.uses if u.name in members]
                if own and group.name in self.collected and not self._add(group, members, own, output):
                    del self.collected[group.name]
                seen.uses = [u for u in seen.uses if u.name not in members]
            return tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, output)

        return ended

    def _add(self, group: ExpertGroup, members: Mapping[str, Member], uses: Sequence[Use], output: Any) -> bool:
        """Add one run of a mixture; False where g cannot be read."""
        last: dict[int, str] = {}
        for use in uses:
            for expert, _ in rows_of(members[use.name], use):
                last[expert] = use.name
        ends = [t for t in tree_flatten(output)[0] if isinstance(t, Tensor) and t.requires_grad]
        biases = [m.param for m in group.with_role("bias") if m.unit is None and m.dim == 0 and m.index is None]
        if not last or not ends:
            return False
        names = [*dict.fromkeys(last.values()), *biases]
        ones = [torch.ones_like(t) for t in ends]
        slopes = torch.autograd.grad(ends, [self.named[n] for n in names], ones, allow_unused=True)
        given = dict(zip(names, slopes, strict=True))
        total = self.collected[group.name]
        for use in uses:
            for expert, rows in rows_of(members[use.name], use):
                if last.get(expert) != use.name:
                    continue
                if use.y is None or use.gy is None:
                    return False
                y, g = (t.reshape(-1, t.shape[-1])[rows].double() for t in (use.y, use.gy))
                if bool((g.amax(-1) - g.amin(-1) > _EVEN * g.abs().amax(-1)).any()):
                    return False
                share = g[:, 0].abs()
                y = y + self._bias(expert, use, rows, y, g, {n: given[n] for n in biases})
                total[expert, 0] += float((share * y.norm(dim=-1)).sum())
                total[expert, 1] += int(share.count_nonzero())
        return True

    def _bias(
        self, expert: int, use: Use, rows: slice, y: Tensor, g: Tensor, slopes: Mapping[str, Tensor | None]
    ) -> Tensor | float:
        """What is added to the last map's output behind it: the stacked bias whose gradient is that of the output."""
        w = self.named[use.name].detach()
        if not use.shares or use.bias is not None or not len(y):
            return 0.0
        x = use.x.reshape(-1, use.x.shape[-1])[rows][0].double()
        plain = (w[expert] if use.in_axis == 2 else w[expert].T).double() @ x
        for name, slope in slopes.items():
            b = self.named[name].detach()
            if slope is None or b.shape != (len(w), y.shape[-1]):
                continue
            added = bool((y[0] - plain).abs().max() > _EVEN * (y[0].abs().max() + b[expert].abs().max()))
            if not added and torch.allclose(slope[expert].double(), g.sum(0), rtol=_EVEN, atol=0.0):
                return b[expert].double()
        return 0.0


def rows_of(member: Member, use: Use) -> Iterator[tuple[int, slice]]:
    """Which experts a use is of, each with its rows of x and y."""
    if member.unit is not None:
        yield member.unit, slice(None)
    else:
        stops = pairwise(accumulate(use.shares, initial=0))
        yield from ((expert, slice(a, b)) for expert, (a, b) in enumerate(stops) if b > a)


def contributed(sources: Sources) -> dict[str, Float[Tensor, "experts 2"]]:
    """`Contributed`, once for all evidence of a part."""
    if "contributed" not in sources.shared:
        sources.shared["contributed"] = Contributed(sources).collected
    found: dict[str, Tensor] = sources.shared["contributed"]
    return found


class ExpertNormEvidence(Evidence):
    """The mean over an expert's tokens of |g| ||f||; 0 for one that gets none. Undefined on units that are no experts.
    See `Contributed` for what f and g are, the cost, and where it is undefined.
    """

    reads: ClassVar[Reads] = "inputs"
    passes: ClassVar[str] = "1 forward per batch, and a backward within each mixture"

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield {n: (t[:, :1] / t[:, 1:].clamp(min=1e-300)) for n, t in contributed(sources).items()}


class ExpertTokensEvidence(ExpertNormEvidence):
    """How many tokens of the calibration data an expert gets. Cost and limits as of `ExpertNormEvidence`."""

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        yield {n: t[:, 1:] for n, t in contributed(sources).items()}


class RouterRowEvidence(Evidence):
    """The router's weights that make an expert's logit, in the order of `ExpertGroup.gates`; undefined on units that
    are no experts. Cost: none.
    """

    def collect(self, sources: Sources) -> Iterator[GroupTensors]:
        found = {}
        for group in sources.groups:
            gates = {g.tensor for g in group.gates} if isinstance(group, ExpertGroup) else set()
            members = [m for m in group.members if m.param in gates and not m.buffer]
            tensors = {m.param: p.detach() for m in members if (p := sources.parameters[m.param]).ndim > 1}
            if tensors:
                found[group.name] = group.views([m for m in members if m.param in tensors], tensors)
        yield found


ExpertNorm = Annotated[Float[Tensor, "*units 1"], ExpertNormEvidence()]
"""`[experts, 1]`: the mean norm of what an expert adds to the output for a token that it gets, gate included."""

ExpertTokens = Annotated[Float[Tensor, "*units 1"], ExpertTokensEvidence()]
"""`[experts, 1]`: how many calibration tokens are routed to an expert."""

RouterRow = Annotated[Float[Tensor, "*units k"], RouterRowEvidence()]
"""`[experts, k]`: the router's weights that make an expert's logit."""
