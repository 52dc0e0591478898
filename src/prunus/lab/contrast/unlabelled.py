"""Learning without labels, and what is told by it: two views of an image that belong together, or the image itself.

The outputs of a network that learns from views are a linear projection of what its last layer is given, 64 numbers an
image; those of one that learns from pixels, a linear picture of the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from prunus.core.errors import DataError
from prunus.lab.data import Dataset, Loader, Split

Learns = Literal["labels", "views", "pixels"]
WIDTH = 64
TEMPERATURE = 0.5
LEAST_AREA = 0.4
JITTER = 0.4
BATCH = 250
DECAY = 1e-4

Batch = tuple[Tensor, Tensor]


def outputs(dataset: Dataset, learns: Learns) -> int:
    """How many numbers a network puts out for an image.

    Raises:
        DataError: views or pixels of data that are no images.
    """
    if learns != "labels" and dataset.kind != "image":
        raise DataError(f"{dataset.name} holds {dataset.kind}: views and pixels are of images")
    pixels = dataset.in_channels * dataset.size**2
    return {"labels": dataset.num_classes, "views": WIDTH, "pixels": pixels}[learns]


def view(
    x: Float[Tensor, "n channels height width"], generator: torch.Generator
) -> Float[Tensor, "n channels height width"]:
    """Every image as another one of the same thing: a part of it, mirrored or not, in another light.

    Source: Chen et al. 2020 (SimCLR), arXiv:2002.05709, section 3, for small images: a square of 0.4 to 1 of the area
    at any place, brought back to size, mirrored every other time; then times 0.6 to 1.4, plus -0.4 to 0.4 deviations.
    Differs: no blur and no change of hue, which grey images have not; squares, no other ratio.
    """
    n = len(x)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=generator)

    side = between(LEAST_AREA, 1.0).sqrt()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = side * torch.where(between(0.0, 1.0) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = side
    theta[:, :, 2] = between(-1.0, 1.0, 2) * (1 - side[:, None])
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    cut = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return cut * between(1 - JITTER, 1 + JITTER, 1, 1, 1) + between(-JITTER, JITTER, 1, 1, 1)


class Unlabelled:
    """The batches of a loader with something to find in place of their labels; iterated as a `Loader` is.

    `views`: `([2n, ...], [2n])`, every image seen twice, and where its other view stands. `pixels`: `([n, ...], [n,
    pixels])`, the images, and the images. Views follow from the loader's seed and the epoch alone.
    """

    def __init__(self, loader: Loader, learns: Learns) -> None:
        self.loader, self.learns, self.epoch = loader, learns, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        self.epoch += 1
        return self.batches(self.epoch - 1)

    def batches(self, epoch: int) -> Iterator[Batch]:
        """The batches of this epoch."""
        # Another stream than the order's, which the loader draws from a generator with the seed as it is.
        generator = torch.Generator().manual_seed((self.loader.seed * 1_000_003 + epoch + 2**62) % 2**63)
        for inputs, _ in self.loader.batches(epoch):
            if self.learns == "pixels":
                yield inputs, inputs.flatten(1)
            else:
                both = torch.cat([view(inputs, generator), view(inputs, generator)])
                yield both, torch.arange(len(both)).roll(len(inputs))


def likeness(z: Float[Tensor, "n width"]) -> Float[Tensor, "n n"]:
    """Cosines over the temperature; of an image with itself, minus infinity."""
    unit = F.normalize(z, dim=1)
    return (unit @ unit.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), -torch.inf)


def loss(learns: Learns, found: Tensor, targets: Tensor) -> Tensor:
    """What is made small: cross-entropy of classes or next tokens, NT-Xent (arXiv:2002.05709, equation 1), or the mean
    square of what the picture lacks.
    """
    if learns == "pixels":
        return F.mse_loss(found, targets)
    if learns == "views":
        return F.cross_entropy(likeness(found), targets)
    return F.cross_entropy(found.flatten(0, -2), targets.flatten())


@torch.no_grad()
def told(model: nn.Module, split: Split, learns: Learns) -> float:
    """How well a network does what it learned without labels, from 0 to 1: in evaluation mode, in float32.

    `views`: the share of views whose nearest, among those of 250 images, is the other view of the same image. `pixels`:
    the share of the variance of the pixels that the pictures have. No label is read.
    """
    model.eval()
    device = next(model.parameters()).device
    middle = split.inputs(split.x).flatten(1).mean(0)
    hits, missed, spread, seen = 0, 0.0, 0.0, 0
    for inputs, targets in Unlabelled(Loader(split, BATCH), learns).batches(0):
        found = model(inputs.to(device)).float().cpu()
        if learns == "pixels":
            missed += float((found - targets).square().sum())
            spread += float((targets - middle).square().sum())
        else:
            hits += int((likeness(found).argmax(1) == targets).sum())
            seen += len(targets)
    return max(0.0, 1.0 - missed / spread) if learns == "pixels" else hits / seen


def probe(model: nn.Module, train: Split, test: Split, classes: int, top: tuple[int, ...] = (1,)) -> dict[int, float]:
    """Top-k accuracy on `test` of a linear classifier of what the network's last linear layer is given.

    Softmax regression on standardized features of `train` with weight decay 1e-4, from zero, by 200 steps of L-BFGS at
    most; the network stays as it is and nothing is chosen. This alone reads labels, once the run is over. Cost: a
    forward of all images; in float64, `len(train) * features * classes` multiplications a step.

    Raises:
        DataError: the network has no linear layer.
    """
    x, y = features(model, train), train.y.long()
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, tested = (x - mean) / std, (features(model, test) - mean) / std
    weight = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=20, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + DECAY / 2 * weight.square().sum()
        value.backward()
        return value

    search.step(objective)
    best = (tested @ weight + bias).topk(max(top), dim=1).indices
    return {k: float((best[:, :k] == test.y.long()[:, None]).any(1).double().mean()) for k in top}


@torch.no_grad()
def features(model: nn.Module, split: Split) -> Float[Tensor, "n features"]:
    """What the last linear layer is given for every image, in evaluation mode and float64."""
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise DataError(f"{type(model).__name__} has no linear layer whose inputs could be told apart by a linear one")
    device, seen = next(model.parameters()).device, list[Tensor]()
    hook = linear[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].double().cpu()))
    try:
        model.eval()
        for start in range(0, len(split), 500):
            model(split.inputs(split.x[start : start + 500]).to(device))
    finally:
        hook.remove()
    return torch.cat(seen)
