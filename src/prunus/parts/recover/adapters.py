"""Low-rank adapters: a pruned model is trained on through a few new weights, which are then added to the old ones."""

import fnmatch
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunus.core.errors import DataError, SpecError, require
from prunus.core.layer import Site
from prunus.core.part import Recovery


@dataclass(frozen=True)
class LoRA(Recovery):
    """W + M . (alpha / rank) B A in place of every linear map's W, M the mask of W; only A and B are trained, with the
    task's loss, and then added (LoRA: Hu et al. 2022, arXiv:2106.09685; on pruned language models, with these settings:
    LLM-Pruner, Ma et al. 2023, arXiv:2305.11627, section 3.3).

    The mask is on B A while it is trained, so what is added is what was trained and pruned weights stay zero (SPP: Lu
    et al. 2024, arXiv:2405.16057, masks likewise). A model without masks, such as a compact one, gets plain adapters:
    `prunus.recover_`. AdamW, batches of `task.train` in turn; B starts at zero. Everything else is frozen. It happens
    at once, after the last event; `steps` of `prunus.prune` come after it.

    Cost: `updates` forwards and backwards; memory for rank (in + out) numbers per layer with gradients and two moments,
    and one more product with a matrix of W's size for each masked layer. Fails: `MissingExtraError` without peft;
    `SpecError` without `task.train` and `task.loss`, or where no linear map is left to adapt; `DataError` for a loss
    that is not finite, the model then being as it was. Differs: no dropout. Matrices of experts in one tensor, tied
    matrices (a head that is the embedding) and weights that no module's own forward uses get no adapter.

    Attributes:
        rank: of B A.
        alpha: what B A is multiplied by, times rank.
        updates: optimizer steps.
        learning_rate: of AdamW, constant.
        exclude: paths of modules, with shell wildcards, that get no adapter.
    """

    rank: int = 8
    alpha: float = 16.0
    updates: int = 200
    learning_rate: float = 1e-4
    exclude: tuple[str, ...] = ("lm_head", "*.lm_head")
    reads: ClassVar[Literal["nothing", "inputs", "labels"]] = "labels"
    trains: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.rank < 1 or self.updates < 1 or not (self.alpha > 0 and self.learning_rate > 0):
            raise SpecError(f"{self}: rank and updates at least 1, alpha and learning_rate above 0")

    def __call__(self, site: Site) -> None:
        require("peft", extra="lora")
        if site.task.train is None or site.task.loss is None:
            raise SpecError("LoRA trains: pass Task(loss=lambda model, batch: ..., train=batches)")
        seed = int(torch.randint(2**31, (1,), generator=site.generator))
        devices = sorted({p.device.index for p in site.model.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), adapted(self, site, seed) as adapters:
            trained_(site, self.updates, self.learning_rate)
            for name, adapter in adapters.items():
                keep = site.masks.get(f"{name}.weight")
                with torch.no_grad():
                    weight, delta = adapter.get_base_layer().weight, adapter.get_delta_weight("default")
                    weight += (delta if keep is None else delta * keep).to(weight.dtype)


def trained_(site: Site, updates: int, rate: float) -> None:
    """What of the model is not frozen, after so many steps with the task's loss."""
    own = [p for p in site.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(own, lr=rate, weight_decay=0.0)
    site.model.train()
    for step, batch in zip(range(updates), _cycle(site), strict=False):
        optimizer.zero_grad(set_to_none=True)
        loss = site.task.loss_of(site.model, batch)
        loss.backward()
        if not bool(loss.detach().isfinite()):
            value = float(loss.detach())
            raise DataError(f"the loss became {value} at update {step} of LoRA: lower its learning_rate")
        optimizer.step()


def layers(model: nn.Module, exclude: tuple[str, ...]) -> list[str]:
    """The paths of the modules that get adapters."""
    # GPT-2's linear map holds its matrix the other way round.
    kinds = (nn.Linear, require("transformers.pytorch_utils", extra="lora").Conv1D)
    users = Counter(id(p) for m in model.modules() for p in m._parameters.values() if p is not None)
    found = [
        n
        for n, m in model.named_modules()
        if isinstance(m, kinds) and users[id(m.weight)] == 1 and not any(fnmatch.fnmatch(n, e) for e in exclude)
    ]
    if not found:
        raise SpecError(f"LoRA: {type(model).__name__} has no linear map of its own outside of {exclude}")
    return found


@contextmanager
def adapted(lora: LoRA, site: Site, seed: int) -> Iterator[dict[str, Any]]:
    """The model with adapters, drawn from the seed, by the paths of what they adapt; everything else is frozen, and put
    back afterwards.
    """
    peft, model = require("peft", extra="lora"), site.model
    names = layers(model, lora.exclude)
    flags = {p: p.requires_grad for p in model.parameters()}
    modes = {m: m.training for m in model.modules()}
    pattern = "|".join(map(re.escape, names))
    config = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=pattern, bias="none")
    had = vars(model).get("peft_config")
    try:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that GPT-2's matrices lie the other way round, which peft sees to
            peft.inject_adapter_in_model(config, model)
        found: dict[str, Any] = {n: model.get_submodule(n) for n in names}
        for name, adapter in found.items():
            if f"{name}.weight" in site.masks:
                adapter.register_forward_hook(_masked(site.masks[f"{name}.weight"]))
        yield found
    finally:
        for name in names:
            owner, _, last = name.rpartition(".")
            inside: Any = model.get_submodule(name)
            if hasattr(inside, "get_base_layer"):
                setattr(model.get_submodule(owner), last, inside.get_base_layer())
        vars(model).pop("peft_config", None)
        if had is not None:
            vars(model)["peft_config"] = had
        for p, flag in flags.items():
            p.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def _masked(keep: Tensor) -> Callable[[Any, Any, Tensor], Tensor]:
    """Takes what an adapter adds through pruned weights off again."""

    def masked(adapter: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
        over = adapter.get_delta_weight("default") * ~keep.to(output.device)
        over = over.T if adapter.fan_in_fan_out else over
        return output - F.linear(given[0].to(over.dtype), over).to(output.dtype)

    return masked


def _cycle(site: Site) -> Iterator[Any]:
    while True:
        empty = True
        for batch in site.task.train or ():
            empty = False
            yield batch
        if empty:
            raise DataError("Task.train ran out of batches: pass something that can be iterated again (a list)")
