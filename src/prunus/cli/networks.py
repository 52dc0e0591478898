"""What the commands that take a network and a checkpoint have in common."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prunus.core.errors import SpecError, listed

if TYPE_CHECKING:
    from torch import nn

    from prunus.core.budget import Budget
    from prunus.core.procedure import Procedure
    from prunus.core.recipe import Recipe

Network = Annotated[
    str,
    typer.Argument(
        help=(
            "A network of the zoo (resnet20), torchvision:NAME, timm:NAME, hf:FOLDER, package.module:factory, "
            "or a folder that prunus wrote."
        ),
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", help="Weights: a .safetensors file, or a folder that prunus wrote."),
]
Input = Annotated[
    str | None,
    typer.Option("--input", help="Shape of one input, batch first: 1,3,224,224. Default: the network's own."),
]
Width = Annotated[float | None, typer.Option("--width", help="Width factor of a zoo network.")]
Classes = Annotated[int | None, typer.Option("--classes", min=1, help="Number of classes; default: 10.")]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", "-O", metavar="NAME=VALUE", help="Another option of the network; may be repeated."),
]
MARK = "pruning.json"


class Built:
    """A network by name with everything it is built with, so that it can be built again and again.

    Attributes:
        name: as `zoo.build` takes it.
        options: the keyword arguments of `zoo.build`.
        saved: the folder its weights come from, if `prunus.save` wrote it.
        input: the shape of one input, where that folder says it.
    """

    def __init__(self, name: str, options: Mapping[str, Any], *, checkpoint: Path | None = None, seed: int = 0) -> None:
        self.saved: Path | None = None
        self.input: list[int] | None = None
        self.checkpoint, self.seed = checkpoint, seed
        recorded: dict[str, Any] = {}
        given = Path(name).expanduser()
        if ":" not in name and (given / MARK).is_file():
            if checkpoint is not None:
                raise SpecError(f"{name} has its own weights: leave --checkpoint out, or name the network it is for")
            self.checkpoint, name = given, ""
        elif "/" in name and ":" not in name:
            raise SpecError(f"{name} is no network's name, and no folder that prunus wrote lies there")
        if self.checkpoint is not None:
            _refuse_pickle(self.checkpoint)
            if not self.checkpoint.exists():
                raise SpecError(f"there is no checkpoint at {self.checkpoint}")
        if self.checkpoint is not None and (self.checkpoint / MARK).is_file():
            self.saved = self.checkpoint
            name, recorded, self.input = _recorded(self.checkpoint, name)
        self.name = name
        given_options = {k: v for k, v in options.items() if v is not None}
        clash = [k for k, v in given_options.items() if k in recorded and recorded[k] != v]
        if clash:
            told = ", ".join(f"{k}={recorded[k]}, not {given_options[k]}" for k in clash)
            raise SpecError(f"{self.checkpoint} was saved from a network with {told}")
        self.options = {**given_options, **recorded}

    @property
    def compacted(self) -> bool:
        """Whether the folder holds a physically smaller network."""
        from prunus.deploy.manifest import read_manifest

        return self.saved is not None and read_manifest(self.saved).compacted

    def dense(self) -> nn.Module:
        """The network with its initial weights, which follow from the seed alone.

        Errors: `SpecError` for options that no network has, or that make one larger than the memory; what a folder
        says of itself is believed no more than the command line.
        """
        import torch

        from prunus.lab import zoo
        from prunus.lab.zoo.weightless import weightless

        if self.options and self.name in zoo.networks():
            told = ", ".join(f"{k}={v}" for k, v in self.options.items())
            state = weightless(self.name, **self.options).state_dict()
            check_room(f"{self.name} with {told}", sum(t.nbytes for t in state.values()))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return zoo.build(self.name, **self.options).eval()

    def model(self) -> nn.Module:
        """The network with its checkpoint's weights, if there is one; compact where the checkpoint is."""
        if self.saved is not None:
            from prunus.deploy.files import load

            return load(self.saved, self.dense)
        model = self.dense()
        if self.checkpoint is not None:
            load_weights_(model, self.checkpoint)
        return model


def folders_of(networks: Iterable[str], what: str) -> list[Path]:
    """The folders of transformers models that hf:FOLDER names. Errors: `SpecError`, "NAMES: `what`, hf:FOLDER", with
    all that are none.
    """
    pairs = [(n, Path(n.removeprefix("hf:")).expanduser()) for n in networks]
    if wrong := [n for n, folder in pairs if not n.startswith("hf:") or not folder.is_dir()]:
        raise SpecError(f"{', '.join(wrong)}: {what}, hf:FOLDER")
    return [folder for _, folder in pairs]


def options_of(classes: int | None, width: float | None, more: list[str] | None) -> dict[str, Any]:
    """The network's options that the command line gave; numbers, true and false are read as such."""
    return {"num_classes": classes, "width": width, **values_of(more, "--option", "stem_stride=2")}


def values_of(texts: list[str] | None, flag: str, such_as: str) -> dict[str, Any]:
    """The values of a repeated NAME=VALUE; numbers, lists, true and false are read as such."""
    found: dict[str, Any] = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise SpecError(f"{flag} {text}: write NAME=VALUE, such as {flag} {such_as}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _refuse_pickle(file: Path) -> None:
    """Told by the name of a file, so before it is looked for or anything is built; folders may have any name."""
    if file.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl") and not file.is_dir():
        raise SpecError(
            f"{file} is a pickle, which can run code when it is read. Convert it once where you trust it: "
            f"safetensors.torch.save_file(prunus.deploy.read_pt(path, trust=True), 'model.safetensors')"
        )


def load_weights_(model: nn.Module, checkpoint: Path) -> None:
    """Fill a model from a safetensors file; every mismatch is named before anything is changed."""
    import safetensors
    from safetensors.torch import load_file

    from prunus.deploy.files import PACKED

    file = checkpoint / "model.safetensors" if checkpoint.is_dir() else checkpoint
    _refuse_pickle(file)
    if not file.is_file():
        raise SpecError(f"there is no checkpoint at {file}")
    try:
        state = load_file(str(file))
    except (OSError, safetensors.SafetensorError) as error:
        raise SpecError(f"{file} is no readable safetensors file: {error}") from error
    with safetensors.safe_open(str(file), "pt") as opened:
        if (opened.metadata() or {}).get("prunus") == PACKED:
            raise SpecError(f"{file} holds packed tensors: give its whole folder, or prunus unpack FOLDER --out DENSE")
    own = model.state_dict(keep_vars=True)
    # Files keep tied tensors once; the model's own ties say under which other name.
    by_tensor = {id(own[n]): state[n] for n in own if n in state}
    state |= {n: by_tensor[id(t)] for n, t in own.items() if n not in state and id(t) in by_tensor}
    wrong = [f"{n} is missing" for n in own if n not in state]
    wrong += [f"{n} is unknown" for n in state if n not in own]
    wrong += [
        f"{n} is {tuple(state[n].shape)}, the network's is {tuple(own[n].shape)}"
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if wrong:
        more = "; is it the network that --width, --classes and --option describe?"
        raise SpecError(f"{file} does not fit this network: {listed(wrong)}{more}")
    model.load_state_dict(state)


def example_for(built: Built, shape: str | None, seed: int = 0) -> tuple[Any, ...]:
    """One input: random numbers of the given shape, or the network's own kind."""
    import torch

    from prunus.lab import zoo

    if shape is None and built.input is not None:
        shape = ",".join(map(str, built.input))
    if shape is None:
        channels, size = built.options.get("in_channels"), built.options.get("size")
        if type(size) is int:
            check_room(f"an input of {size} x {size}", 4 * max(1, channels or 3) * size * size)
        return zoo.example_inputs(built.name, in_channels=channels, size=size, batch=1, seed=seed)
    if not re.fullmatch(r"[1-9]\d{0,8}(,[1-9]\d{0,8})*", shape):
        raise SpecError(f"--input {shape}: give whole numbers separated by commas, such as 1,3,224,224")
    sizes = [int(n) for n in shape.split(",")]
    check_room(f"an input of {shape}", 4 * math.prod(sizes))
    generator = torch.Generator().manual_seed(seed)
    if zoo_kind(built.name) == "tokens":
        return (torch.randint(100, sizes, generator=generator),)
    return (torch.randn(sizes, generator=generator),)


def check_room(what: str, size: int) -> None:
    """Refuse what does not fit the memory before it is made. size: bytes. Errors: `SpecError`."""
    from prunus.deploy.weights import free_memory

    if size > (free := free_memory()):
        raise SpecError(f"{what} takes {size:,} bytes, and {free:,} bytes of memory are free: make it smaller")


def zoo_kind(name: str) -> str:
    """What a network takes: `image` or `tokens`; images where nobody says."""
    from prunus.lab import zoo

    if ":" in name:
        return "tokens" if name.startswith("hf:") else "image"
    return zoo.spec(name).kind


def tried(model: nn.Module, name: str, example: tuple[Any, ...]) -> None:
    """Run the network once, or say in a sentence which input it does not take."""
    import torch

    try:
        with torch.no_grad():
            model(*example)
    except (RuntimeError, IndexError, TypeError) as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in example)
        raise SpecError(f"{name} does not take an input of {shapes}: {error}. Give its shape with --input") from error


def budget_from(
    recipe: Recipe | Procedure, sparsity: float | None, *, solver: str | None = None, **ceilings: float | None
) -> Budget:
    """The budget of the command line; exactly one of the options, or none for recipes that bring their own.

    ceilings: what `--macs`, `--params`, `--bytes` and `--latency` gave, by the names of `Budget`'s fields.
    solver: what `--solver` gave, which only a budget in latency takes.
    """
    from prunus.core.budget import Budget
    from prunus.engine.prepare import resolve_budget

    ceiling = {k: v for k, v in ceilings.items() if v is not None}
    given = [f"--{k}" for k in ({} if sparsity is None else {"sparsity": sparsity}) | ceiling]
    if len(given) > 1:
        raise SpecError(f"{' and '.join(given)} contradict each other: give one")
    if not given and getattr(getattr(recipe, "allocate", None), "density", None) is None:
        others = ", ".join(f"--{k} 0.5" for k in ceilings)
        raise SpecError(f"{recipe.name} needs to know how much: --sparsity 0.9 or one of {others}")
    if solver is not None and "latency" not in ceiling:
        raise SpecError("--solver says how a budget in latency is met: it needs --latency")
    told: dict[str, Any] = ceiling if solver is None else {**ceiling, "solver": solver}
    return resolve_budget(recipe, sparsity, Budget(**told) if ceiling else None)


def _recorded(folder: Path, name: str) -> tuple[str, dict[str, Any], list[int] | None]:
    """Network, options and input shape that a folder was saved from, as far as it says so and `name` agrees."""
    from prunus.deploy.manifest import read_manifest
    from prunus.lab import zoo

    notes = read_manifest(folder).notes
    written, options = notes.get("network"), notes.get("options")
    options = options if isinstance(options, dict) else {}
    # The weights are in the folder: nothing is to be fetched for the sake of a file's note.
    options = {k: v for k, v in options.items() if isinstance(v, str | int | float) and k != "pretrained"}
    shape = notes.get("input")
    shape = shape if isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) else None
    if not name:
        # A name with a colon is importable code: a file may not choose what is run.
        if not isinstance(written, str) or written not in zoo.networks():
            raise SpecError(f"{folder} does not say which network of the zoo it is: give NETWORK --checkpoint {folder}")
        return written, options, shape
    if isinstance(written, str) and written != name:
        raise SpecError(f"{folder} holds a {written}, not a {name}")
    return name, options, shape
