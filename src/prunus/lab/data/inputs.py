"""Calibration data that is no text: tensors with the names of a model's arguments, and images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import DataError, SpecError, VerificationError, listed, require
from prunus.deploy.tensors import TensorFile, bytes_of

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SUFFIXES = (".safetensors", ".npy", *IMAGES)


@dataclass(frozen=True, eq=False)
class Inputs:
    """Batches of a model's arguments.

    Attributes:
        batches: of each, keyword -> tensor.
        told: where they come from.
    """

    batches: list[dict[str, Tensor]]
    told: str

    @property
    def digest(self) -> str:
        """SHA-256 of all tensors and their names."""
        sha = hashlib.sha256()
        for name, tensor in (pair for b in self.batches for pair in sorted(b.items(), key=lambda p: p[0])):
            sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            sha.update(bytes_of(tensor))
        return sha.hexdigest()

    def __str__(self) -> str:
        named = " and ".join(dict.fromkeys(", ".join(sorted(b)) for b in self.batches))
        return f"{len(self.batches)} batches of {named}, SHA-256 {self.digest[:12]}, from {self.told}"


def holds_inputs(place: Path) -> bool:
    """Whether a file is a tensor or an image, or a folder has such files and nothing else that calibrates."""
    if place.is_dir():
        return any(p.suffix.lower() in SUFFIXES for p in place.iterdir())
    return place.suffix.lower() in SUFFIXES


def inputs(place: Path, model: Path, *, together: int = 8) -> Inputs:
    """The tensors and images of a file, or of a folder (not those of folders in it), by name.

    Args:
        place: `*.safetensors`: a batch each, whose tensors have the names of the model's arguments; `*.npy`: a batch
            (or one) of `pixel_values` each; images, which the model's own processor makes into tensors.
        model: a transformers folder, with `preprocessor_config.json` where there are images.
        together: images in a batch.

    Errors: `DataError` for what cannot be read or is no such file; `SpecError` where there are images and no processor;
        `MissingExtraError` for images without pillow or transformers.
    """
    found = sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
    if not found:
        raise DataError(f"{place} holds none of {', '.join(SUFFIXES)}")
    batches = [_read(p) for p in found if p.suffix.lower() not in IMAGES]
    images = [p for p in found if p.suffix.lower() in IMAGES]
    if images:
        batches += _processed(images, model, together)
    return Inputs(batches, f"{len(found)} files of {place}")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix.lower() == ".safetensors":
            held = TensorFile(file)
            made = {n: held.tensor(n) for n in held.places}
        else:
            import numpy as np

            pixels = torch.from_numpy(np.load(file, allow_pickle=False))
            made = {"pixel_values": pixels.unsqueeze(0) if pixels.ndim == 3 else pixels}
    except (VerificationError, ValueError, TypeError, OSError) as error:
        raise DataError(f"{file} cannot be calibrated with: {error}") from error
    if not made or not all(t.numel() for t in made.values()):
        raise DataError(f"{file} holds no tensor, or an empty one: leave it out")
    return made


def _processed(files: Sequence[Path], model: Path, together: int) -> list[dict[str, Tensor]]:
    if not (model / "preprocessor_config.json").is_file():
        raise SpecError(
            f"{listed([f.name for f in files], 2)}: {model} has no preprocessor_config.json, which says how images "
            f"become tensors; give tensors instead (*.safetensors with pixel_values)"
        )
    pil = require("PIL.Image", extra="vision", why="it decodes the images to calibrate with")
    transformers = require("transformers", extra="hf", why="the model's own processor makes tensors of images")
    processor: Any = transformers.AutoImageProcessor.from_pretrained(model, local_files_only=True)
    made = []
    for some in (files[i : i + together] for i in range(0, len(files), together)):
        try:
            opened = [pil.open(f).convert("RGB") for f in some]
        except (OSError, SyntaxError, ValueError) as error:  # a broken PNG is a SyntaxError
            raise DataError(f"one of {listed([f.name for f in some])} is no image that can be read: {error}") from error
        given = processor(images=opened, return_tensors="pt")
        made.append({n: t for n, t in given.items() if isinstance(t, Tensor)})
    return made
