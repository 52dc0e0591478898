"""What networks there are: one `Spec` per name, with the factory that builds it and the input that it takes.

Nothing in this file imports torch until a network or an input is asked for, so a command line may list the names.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from prunus.core.errors import SpecError, UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["image", "tokens"]


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """`channels * width` rounded to the nearest positive multiple; the channel count of a narrower or wider network.

    Raises:
        SpecError: `width` is not positive.
    """
    if not width > 0:
        raise SpecError(f"width must be a positive factor such as 0.5, not {width!r}")
    return max(multiple, round(channels * width / multiple) * multiple)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One network of the zoo.

    Attributes:
        name: What `build` is told.
        module: Module of the factory, imported when the network is built.
        factory: Name of the function or class in that module.
        kind: `image` networks take `[batch, in_channels, size, size]` float images and return `[batch, classes]`
            logits; `tokens` networks take `[batch, length]` integers and return `[batch, length, vocabulary]` logits.
        size: Side of the image in pixels, or length of the sequence, for which the network was designed.
        channels: Channels of the image for which the parameter count is stated; 0 for tokens.
        vocabulary: Number of tokens; 0 for images.
        params: Parameters with 10 classes (or `vocabulary` tokens) at width 1, exactly.
        source: Paper.
        about: One line.
    """

    name: str
    module: str
    factory: str
    kind: Kind = "image"
    size: int = 32
    channels: int = 3
    vocabulary: int = 0
    params: int
    source: str
    about: str

    def build(self, **options: Any) -> nn.Module:
        """Build the network; initial weights come from torch's global generator, as for any `nn.Module`.

        Raises:
            SpecError: an option the factory does not have, or a value that it cannot use.
        """
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(self.module), self.factory)
        known = list(inspect.signature(factory).parameters)
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise SpecError(f"network {self.name!r} has no option {', '.join(unknown)}: it takes {', '.join(known)}")
        return factory(**options)

    def example(
        self, in_channels: int | None = None, size: int | None = None, *, batch: int = 2, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """Inputs that the network accepts: standard normal images, or uniformly drawn tokens.

        Args:
            in_channels: Channels of the image; the spec's own when left out. Ignored for tokens.
            size: Side of the image or length of the sequence; the spec's own when left out.
            batch: Number of examples.
            seed: Seed of the generator they are drawn from.
        """
        import torch

        generator = torch.Generator().manual_seed(seed)
        side = self.size if size is None else size
        if self.kind == "tokens":
            return (torch.randint(self.vocabulary, (batch, side), generator=generator),)
        channels = self.channels if in_channels is None else in_channels
        return (torch.randn(batch, channels, side, side, generator=generator),)


_HERE = "prunus.lab.zoo"
_RESNET = "He, Zhang, Ren & Sun 2016, CVPR, arXiv:1512.03385"
_VGG = "Simonyan & Zisserman 2015, ICLR, arXiv:1409.1556; in the CIFAR form of Liu et al. 2017, ICCV, arXiv:1708.06519"
_GPT = 'Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"'

SPECS: tuple[Spec, ...] = (
    Spec(
        name="lenet300",
        module=f"{_HERE}.lenet",
        factory="lenet300",
        size=28,
        channels=1,
        params=266_610,
        source="LeCun, Bottou, Bengio & Haffner 1998, Proceedings of the IEEE 86(11)",
        about="LeNet-300-100: two hidden layers on flattened pixels",
    ),
    Spec(
        name="mlp",
        module=f"{_HERE}.lenet",
        factory="mlp",
        size=8,
        channels=1,
        params=10_950,
        source="none: a network for tests",
        about="small perceptron, 64-100-40-10 on 8x8 images",
    ),
    *(
        Spec(
            name=f"vgg{depth}",
            module=f"{_HERE}.vgg",
            factory=f"vgg{depth}",
            params=params,
            source=_VGG,
            about=f"VGG-{depth} with batch normalization, global pooling and one linear layer",
        )
        for depth, params in ((11, 9_228_362), (16, 14_724_042), (19, 20_035_018))
    ),
    Spec(
        name="vgg_tiny",
        module=f"{_HERE}.vgg",
        factory="vgg_tiny",
        size=28,
        params=24_346,
        source="none: a network in VGG's style that trains in seconds",
        about="three convolutions (16, 32, 64) with batch normalization, one linear layer",
    ),
    *(
        Spec(
            name=f"resnet{depth}",
            module=f"{_HERE}.resnet",
            factory=f"resnet{depth}",
            params=params,
            source=_RESNET,
            about=f"CIFAR ResNet-{depth}, parameter-free shortcuts (option A)",
        )
        for depth, params in ((8, 75_290), (14, 172_506), (20, 269_722), (32, 464_154), (56, 853_018))
    ),
    Spec(
        name="resnet18",
        module=f"{_HERE}.resnet",
        factory="resnet18",
        params=11_173_962,
        source=_RESNET,
        about="ResNet-18 with a CIFAR stem, projection shortcuts (option B)",
    ),
    Spec(
        name="mobilenetv2",
        module=f"{_HERE}.mobilenet",
        factory="mobilenetv2",
        params=2_236_682,
        source="Sandler et al. 2018, CVPR, arXiv:1801.04381",
        about="MobileNetV2 with CIFAR strides: depthwise convolutions, inverted residuals",
    ),
    Spec(
        name="vit_tiny_cifar",
        module=f"{_HERE}.vit",
        factory="vit_tiny_cifar",
        params=1_205_898,
        source="Dosovitskiy et al. 2021, ICLR, arXiv:2010.11929",
        about="small vision transformer on 4x4 patches",
    ),
    Spec(
        name="gpt_tiny",
        module=f"{_HERE}.gpt",
        factory="gpt_tiny",
        kind="tokens",
        size=64,
        channels=0,
        vocabulary=256,
        params=120_576,
        source=_GPT,
        about="small decoder language model on bytes, fused or separate q, k, v",
    ),
    Spec(
        name="moe_tiny",
        module=f"{_HERE}.moe",
        factory="moe_tiny",
        kind="tokens",
        size=64,
        channels=0,
        vocabulary=256,
        params=203_904,
        source="Shazeer et al. 2017, ICLR, arXiv:1701.06538; Fedus et al. 2022, JMLR, arXiv:2101.03961",
        about="decoder whose MLPs are mixtures of experts with top-k routing",
    ),
)

_BY_NAME = {s.name: s for s in SPECS}


def networks() -> tuple[str, ...]:
    """Names of the networks that need nothing but torch."""
    return tuple(_BY_NAME)


def spec(name: str) -> Spec:
    """The record of one network.

    Raises:
        UnknownNameError: no network has this name; the message has the nearest ones.
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise UnknownNameError("network", name, _BY_NAME) from None
