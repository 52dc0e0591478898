"""A recovery by itself, on a model that is pruned already."""

from collections.abc import Mapping

from torch import Tensor, nn

from prunus.core.errors import SpecError
from prunus.core.layer import Site
from prunus.core.part import Recovery
from prunus.core.task import Task
from prunus.engine.apply_ import apply_
from prunus.engine.prepare import resolve_task, unwrap
from prunus.engine.score import seeded


def recover_(
    model: nn.Module,
    task: Task | None,
    recovery: Recovery,
    *,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
) -> nn.Module:
    """What a recovery does at once, on any model, in place: one that was compacted or loaded, or a masked one.

    Args:
        model: the model, changed in place; its shapes stay.
        task: what the recovery reads.
        recovery: such as `LoRA()`. Its `steps`, `rate` and `loss` are about training in `prunus.prune`: no part here.
        masks: parameter name -> bool of its shape: what must stay zero (`Result.masks`). None: everything may change.
        teacher: the dense model, where the recovery learns from it.
        seed: of what is drawn.

    Returns: the model. Cost: the recovery's.
    Errors: `SpecError` for masks that do not fit, or a teacher that is missing; those of the recovery.
    """
    inner = unwrap(model)
    if not isinstance(recovery, Recovery):
        raise SpecError(f"a recovery is a part such as LoRA(), not a {type(recovery).__name__}")
    if recovery.teacher and teacher is None:
        raise SpecError(f"{type(recovery).__name__} learns from the dense model: pass teacher=")
    named = dict(inner.named_parameters())
    given = {n: m.to(named[n].device) for n, m in (masks or {}).items() if n in named}
    for name, mask in (masks or {}).items():
        if name not in named or named[name].shape != mask.shape:
            raise SpecError(
                f"the model has no parameter {name!r} of shape {tuple(mask.shape)}, for which there is a mask"
            )
    recovery(Site(inner, resolve_task(task), (), given, seeded(seed), teacher))
    apply_(named, given)
    return model
