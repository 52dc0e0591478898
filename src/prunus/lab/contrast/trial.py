"""One run of a contrast: what it is, by which digest it is known, and what is written down of it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

import prunus
from prunus.core.budget import Budget
from prunus.core.errors import SpecError
from prunus.core.recipe import Recipe
from prunus.lab.contrast.problem import Problem
from prunus.lab.facts import environment

Currency = Literal["units", "params", "macs"]
LATER = frozenset({"masks", "classes", "thinned", "learns", "resolution"})
"""What specs and problems had not from the beginning: left out of a run's key where it is as if it were not there."""


class Spec(BaseModel):
    """Everything that a run's outcome depends on, but for the code and the machine.

    Attributes:
        problem: network, data, training.
        recipe: `Recipe.to_dict()`; None for the dense network.
        currency, keep: the budget; keep is 1 for the dense network and for recipes with a density of their own.
        epochs: passes over the data that the recipe may use.
        rate: largest learning rate.
        seed: of the initial weights, the order of the data, and everything random in the recipe.
        parent: key of the run whose trained weights are pruned; None where it starts from initial ones.
        masks: key of the run whose masks are taken over; None where the recipe finds its own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    problem: Problem
    recipe: dict[str, Any] | None = None
    currency: Currency = "units"
    keep: float = 1.0
    epochs: int = Field(ge=0)
    rate: float
    seed: int
    parent: str | None = None
    masks: str | None = None

    @property
    def key(self) -> str:
        """SHA-256 of it as JSON; what a recipe is called does not count, nor do settings that came later and are not
        made use of.
        """
        plain = self.model_dump(mode="json")
        for told, model in ((plain, self), (plain["problem"], self.problem)):
            for name in LATER & told.keys():
                if getattr(model, name) == type(model).model_fields[name].default:
                    del told[name]
        if plain["recipe"] is not None:
            plain["recipe"] = {k: v for k, v in plain["recipe"].items() if k not in ("name", "source")}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @property
    def method(self) -> str:
        """What the recipe is called."""
        return "dense" if self.recipe is None else str(self.recipe["name"])

    def recipe_of(self) -> Recipe | None:
        """The recipe itself."""
        if self.recipe is None:
            return None
        prunus.parts.load_all()
        return Recipe.from_dict(self.recipe)

    def budget(self) -> Budget | None:
        """The budget; None where the recipe brings its own density."""
        found = self.recipe_of()
        if found is not None and getattr(found.allocate, "density", None) is not None:
            return None
        share: dict[str, Any] = {"density" if self.currency == "units" else self.currency: self.keep}
        return Budget(**share)


class Layer(BaseModel):
    """How much of a weight tensor was kept."""

    name: str
    weights: int
    kept: int


class Record(BaseModel):
    """What is known of a run once it is made. Accuracies are fractions between 0 and 1.

    Attributes:
        test, test_top5: accuracy after the last step, looked at once; top 5 where there are more than five classes. Of
            what learns without labels, that of a linear classifier (`unlabelled.probe`).
        valid: the same on held-out training examples; choices are made by it. Of what learns without labels, how well
            it does that (`unlabelled.told`).
        untrained: `valid` right after pruning trained weights, before any further step; None where that is no state
            of the run.
        sparsity: removed units over ranked units.
        params_dense, params_kept: parameters of the whole network, and those that are not zero.
        macs_dense, macs_kept: multiply-accumulates of one input, and those whose weight is not zero; of the dense
            network on images of full size, and of this one on the images that it was given.
        effective: share of the ranked weights that are zero or lie on no path from input to output.
        collapsed: groups of which nothing is left.
        layers: what was kept of every weight tensor, in the network's order.
        masks: SHA-256 over all masks.
        initial: SHA-256 over the weights that the run began with.
        data: SHA-256 of the data set.
        steps: optimizer steps taken.
        seconds: processor time of the whole run, evaluation included.
        notes: what the recipe said: groups left dense, warnings.
    """

    test: float
    test_top5: float | None = None
    valid: float
    untrained: float | None = None
    sparsity: float
    params_dense: int
    params_kept: int
    macs_dense: int
    macs_kept: int
    effective: float | None = None
    collapsed: tuple[str, ...] = ()
    layers: tuple[Layer, ...] = ()
    masks: str = ""
    initial: str = ""
    data: str = ""
    steps: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def params_ratio(self) -> float:
        """Dense over kept parameters, of the whole network."""
        return self.params_dense / max(1, self.params_kept)

    @property
    def macs_ratio(self) -> float:
        """Dense over kept multiply-accumulates."""
        return self.macs_dense / max(1, self.macs_kept)


class Environment(BaseModel):
    """The code and the machine: runs of different ones are never mixed.

    Attributes:
        prunus: version and digest of its sources.
        torch: version.
        processor: what the runs are made on, as the system names it: the CPU, or the accelerator.
        python, system: for the record; they do not count.
    """

    model_config = ConfigDict(frozen=True)

    prunus: str
    torch: str
    processor: str
    python: str = ""
    system: str = ""

    @property
    def key(self) -> str:
        """The first twelve digits of the SHA-256 of what counts."""
        return hashlib.sha256(f"{self.prunus}\n{self.torch}\n{self.processor}".encode()).hexdigest()[:12]


def here(device: str = "cpu") -> Environment:
    """This process's environment, with runs on a device. Cost: reads the package's sources once.

    Raises:
        SpecError: there is no such device here.
    """
    return Environment(
        prunus=f"{prunus.__version__}+{_sources()}",
        torch=torch.__version__,
        processor=_processor(device),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
    )


def _processor(device: str) -> str:
    """What a device is called."""
    try:
        kind = torch.device(device).type
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SpecError(f"device {device}: {str(error).splitlines()[0]}") from error
    if kind == "cpu":
        return str(environment()["processor"])
    return torch.cuda.get_device_name(device) if kind == "cuda" else kind


@cache
def _sources() -> str:
    """A digest of the package's modules, but for those that no run passes through."""
    root = Path(prunus.__file__).parent
    sha = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        where = file.relative_to(root)
        if where.parts[0] not in ("cli", "report", "stream", "deploy"):
            sha.update(os.fsencode(where.as_posix()))
            sha.update(file.read_bytes())
    return sha.hexdigest()[:8]
