"""The networks have the literature's parameter counts, take the shapes they say, and refuse what they cannot do."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from prunus.core.errors import SpecError, UnknownNameError
from prunus.lab import zoo
from prunus.lab.zoo.attention import SelfAttention
from prunus.lab.zoo.moe import MixtureOfExperts
from prunus.lab.zoo.resnet import PadShortcut

torch.set_num_threads(1)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# Written out here, not read from the catalogue: LeNet-300-100 266.6 k; VGG-16 14.72 M and VGG-19 20.04 M (network
# slimming); ResNet-20/32/56 0.27, 0.46, 0.85 M (He et al., table 6); ResNet-18 11.17 M; MobileNetV2 2.24 M.
LITERATURE = {
    "lenet300": 266_610,
    "vgg11": 9_228_362,
    "vgg16": 14_724_042,
    "vgg19": 20_035_018,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet56": 853_018,
    "resnet18": 11_173_962,
    "mobilenetv2": 2_236_682,
}


@pytest.mark.parametrize("name", LITERATURE)
def test_parameter_counts_are_those_of_the_literature(name: str) -> None:
    assert count(zoo.build(name)) == LITERATURE[name]


@pytest.mark.parametrize("name", zoo.networks())
def test_the_catalogue_states_the_true_count_and_a_working_example(name: str) -> None:
    model = zoo.build(name).eval()
    record = zoo.spec(name)
    assert count(model) == record.params
    inputs = zoo.example_inputs(name, batch=2, seed=3)
    with torch.no_grad():
        out = model(*inputs)
    assert out.shape == ((2, record.size, record.vocabulary) if record.kind == "tokens" else (2, 10))
    assert torch.isfinite(out).all()
    assert torch.equal(inputs[0], zoo.example_inputs(name, batch=2, seed=3)[0])
    assert not torch.equal(inputs[0], zoo.example_inputs(name, batch=2, seed=4)[0])


@pytest.mark.parametrize("name", [n for n in zoo.networks() if zoo.spec(n).kind == "image"])
def test_channels_classes_and_size_are_options(name: str) -> None:
    size = 16
    model = zoo.build(name, num_classes=7, in_channels=2, size=size).eval()
    inputs = zoo.spec(name).example(2, size)
    with torch.no_grad():
        assert model(*inputs).shape == (2, 7)


@pytest.mark.parametrize("name", ["vgg11", "resnet20", "resnet18", "mobilenetv2", "lenet300"])
def test_width_narrows(name: str) -> None:
    narrow = zoo.build(name, width=0.5)
    assert 0.2 < count(narrow) / LITERATURE.get(name, 0) < 0.6
    with torch.no_grad():
        narrow.eval()(*zoo.spec(name).example())


def test_width_scales_every_channel_count_of_resnet20() -> None:
    widths = {m.out_channels for m in zoo.build("resnet20", width=0.5).modules() if isinstance(m, nn.Conv2d)}
    assert widths == {8, 16, 32}


def test_pad_shortcut_subsamples_and_centres_the_channels() -> None:
    x = torch.arange(1.0, 1 + 2 * 4 * 4).reshape(1, 2, 4, 4)
    y = PadShortcut(1, 1, 2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, 0].any() and not y[:, 3].any()


def test_shortcuts_a_have_no_parameters_and_b_have() -> None:
    a, b = zoo.build("resnet20"), zoo.build("resnet20", shortcut="B")
    # Two projections, 16 to 32 and 32 to 64 channels, each with the two vectors of its normalization.
    assert count(b) - count(a) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_stem_stride_changes_resolution_but_no_parameter() -> None:
    model = zoo.build("resnet20", in_channels=1, stem_stride=2)
    assert count(model) == count(zoo.build("resnet20", in_channels=1))
    seen: list[torch.Size] = []
    model.get_submodule("stages").register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    model(torch.zeros(2, 1, 28, 28))
    assert seen == [torch.Size([2, 16, 14, 14])]


def test_decoder_is_causal_and_tied() -> None:
    model = zoo.build("gpt_tiny").eval()
    (tokens,) = zoo.example_inputs("gpt_tiny")
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])
    assert model.get_parameter("head.weight") is model.get_parameter("tokens.weight")
    assert count(zoo.build("gpt_tiny", tied=False)) - count(model) == 256 * 64


def test_fused_attention_equals_separate_projections() -> None:
    torch.manual_seed(0)
    fused = SelfAttention(8, 2, causal=True, fused=True).double()
    apart = SelfAttention(8, 2, causal=True, fused=False).double()
    with torch.no_grad():
        for index, part in enumerate((apart.q, apart.k, apart.v)):
            part.weight.copy_(fused.qkv.weight[8 * index : 8 * index + 8])
            part.bias.copy_(fused.qkv.bias[8 * index : 8 * index + 8])
        apart.proj.load_state_dict(fused.proj.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.allclose(fused(x), apart(x), atol=1e-12)


def test_mixture_uses_exactly_the_k_best_experts() -> None:
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, 16, experts=4, k=2).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    logits = layer.router(x)
    for t in range(3):
        best = logits[0, t].topk(2)
        weights = best.values.softmax(0)
        expected = sum(w * layer.experts[int(i)](x[0, t]) for w, i in zip(weights, best.indices, strict=True))
        assert torch.allclose(layer(x)[0, t], expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet20", {"widht": 0.5}, "widht"),
        ("resnet20", {"width": 0.0}, "width"),
        ("resnet20", {"size": 2}, "too small"),
        ("resnet20", {"stem_stride": 0}, "stem_stride"),
        ("vgg16", {"size": 8}, "16 or more"),
        ("mobilenetv2", {"size": 4}, "8 or more"),
        ("resnet18", {"size": 4}, "8 or more"),
        ("vit_tiny_cifar", {"size": 30}, "patches"),
        ("vit_tiny_cifar", {"heads": 3}, "heads"),
        ("gpt_tiny", {"depth": 0}, "depth"),
        ("moe_tiny", {"k": 5}, "experts"),
        ("mlp", {"hidden": ()}, "hidden"),
        ("nowhere.such:model", {}, "cannot be imported"),
        ("torch.nn:pi", {}, "no"),
        ("prunus.lab.zoo.lenet:mlp", {"nonsense": 1}, "nonsense"),
        ("math:pi", {}, "not a callable"),
        ("builtins:dict", {}, "not a torch.nn.Module"),
        (":resnet", {}, "library:name"),
        ("a b:c", {}, "is not a network"),
    ],
)
def test_bad_requests_say_what_is_wrong(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        zoo.build(name, **options)


def test_unknown_network_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="resnet20"):
        zoo.build("resnet-20")
    with pytest.raises(UnknownNameError, match="mlp"):
        zoo.build("prunus.lab.zoo.lenet:mpl")


def test_factory_gets_what_it_has_by_name() -> None:
    model = zoo.build("prunus.lab.zoo.lenet:mlp", num_classes=3, in_channels=1, size=4)
    assert model(torch.zeros(1, 1, 4, 4)).shape == (1, 3)
    assert isinstance(zoo.build("torch.nn:Identity"), nn.Identity)


def test_building_leaves_the_default_dtype_and_training_mode() -> None:
    model = zoo.build("resnet8")
    assert model.training and next(model.parameters()).dtype == torch.float32


def test_listing_networks_does_not_import_torch() -> None:
    code = (
        "import sys; from prunus.lab.zoo import catalog; from prunus.lab import zoo, presets; "
        "zoo.networks(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def _works(library: str) -> bool:
    try:
        __import__(library)
    except (ImportError, RuntimeError):  # torchvision raises RuntimeError beside a torch it was not built for
        return False
    return True


@pytest.mark.skipif(not _works("torchvision"), reason="torchvision is not installed, or built for another torch")
def test_torchvision_and_timm_networks() -> None:
    model = zoo.build("torchvision:resnet18", num_classes=4).eval()
    with torch.no_grad():
        assert model(*zoo.example_inputs("torchvision:resnet18", size=32)).shape == (2, 4)
    with pytest.raises(UnknownNameError, match="resnet18"):
        zoo.build("torchvision:resnet19")
    with pytest.raises(SpecError, match="3 channels"):
        zoo.build("torchvision:resnet18", in_channels=1)
    pytest.importorskip("timm")
    model = zoo.build("timm:resnet18", num_classes=4, in_channels=1).eval()
    with torch.no_grad():
        assert model(*zoo.example_inputs("timm:resnet18", in_channels=1, size=32)).shape == (2, 4)


@pytest.mark.skipif(not _works("transformers"), reason="transformers is not installed")
@pytest.mark.skipif(not _works("torchvision"), reason="transformers imports torchvision, which does not work here")
def test_transformers_networks_from_a_type_and_from_a_folder(tmp_path) -> None:
    sizes = {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 100, "n_positions": 16}
    model = zoo.build("hf:gpt2", **sizes).eval()
    (tokens,) = zoo.example_inputs("hf:gpt2", size=8)
    with torch.no_grad():
        out = model(tokens).logits
    assert out.shape == (2, 8, 100)
    model.save_pretrained(tmp_path)
    again = zoo.build(f"hf:{tmp_path}").eval()
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, out)
