"""State of torch.nn.utils.prune: what comes in is what torch computes, what goes out torch takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import prunus
from prunus.core.errors import SpecError
from prunus.deploy import from_torch_prune, load_masks, to_torch_prune
from tests.deploy.toys import KINDS, pruned, toy


def by_torch() -> nn.Module:
    """Pruned in every way that torch has, one module twice."""
    model = toy()
    model.tied.weight = nn.Parameter(model.tied.weight.detach().clone())
    prune.l1_unstructured(model.conv1, "weight", amount=0.3)
    prune.ln_structured(model.conv2, "weight", amount=0.5, n=2, dim=0)
    prune.random_unstructured(model.conv2, "weight", amount=0.2)
    prune.random_unstructured(model.conv2, "bias", amount=0.2)
    prune.global_unstructured([(model.fc, "weight"), (model.tied, "weight")], prune.L1Unstructured, amount=0.4)
    return model


def removed(model: nn.Module) -> dict[str, Tensor]:
    """What torch itself leaves when pruning is made permanent, which it is from now on."""
    for module in model.modules():
        for name in [n.removesuffix("_orig") for n, _ in list(module.named_parameters(recurse=False))]:
            if hasattr(module, f"{name}_mask"):
                prune.remove(module, name)
    return model.state_dict()


def test_what_comes_in_is_what_torch_makes_of_it() -> None:
    model = by_torch()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    plain = from_torch_prune(model)
    assert plain.masks.keys() == {"conv1.weight", "conv2.weight", "conv2.bias", "fc.weight", "tied.weight"}
    assert all(torch.equal(m, before[f"{n}_mask"].bool()) for n, m in plain.masks.items())
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    x = torch.randn(2, 1, 6, 6)
    computed = model(x)
    expected = removed(model)
    fresh = toy()
    fresh.tied.weight = nn.Parameter(torch.empty(5, 16))
    fresh.load_state_dict(plain.state)
    assert torch.equal(fresh(x), computed)
    assert plain.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(plain.state[name], tensor), name


def test_a_state_read_from_a_file_does() -> None:
    model = by_torch()
    state = {n: t.clone() for n, t in model.state_dict().items()}
    assert torch.equal(from_torch_prune(state).state["conv2.weight"], removed(model)["conv2.weight"])
    assert from_torch_prune(toy()).masks == {}


class Versioned(nn.Linear):
    """As torchvision's MNASNet: a state of an older version, or of none, is another network's."""

    _version = 2

    def _load_from_state_dict(self, state: object, prefix: str, local: dict[str, object], *rest: object) -> None:
        assert local.get("version") == 2
        super()._load_from_state_dict(state, prefix, local, *rest)  # type: ignore[arg-type]


def test_versions_of_modules_stay_with_the_state() -> None:
    model = nn.Sequential(Versioned(4, 4))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    plain = from_torch_prune(model)
    fresh = nn.Sequential(Versioned(4, 4))
    fresh.load_state_dict(plain.state)
    assert torch.equal(fresh[0].weight, model[0].weight)


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_out_computes_the_same_and_comes_back(kind: str) -> None:
    _, example, _, _ = KINDS[kind]
    result = pruned(kind)
    out = to_torch_prune(result)
    assert prune.is_pruned(out) and not prune.is_pruned(result.model)
    assert torch.equal(out.eval()(example), result.model.eval()(example))
    state, own = out.state_dict(), dict(result.model.named_parameters())
    for name, mask in result.masks.items():
        assert torch.equal(state[f"{name}_mask"].bool(), mask) and name not in state
        assert torch.equal(state[f"{name}_orig"] * state[f"{name}_mask"], own[name])
    back = from_torch_prune(out)
    assert all(torch.equal(back.masks[n], m) for n, m in result.masks.items())
    assert all(torch.equal(back.state[n], t) for n, t in result.model.state_dict().items())
    ties = len(list(out.parameters()))
    assert ties == len(list(result.model.parameters()))
    plain = removed(out)
    assert all(torch.equal(plain[n], t) for n, t in result.model.state_dict().items())


def test_training_goes_on_under_torchs_masks() -> None:
    out = to_torch_prune(pruned("unstructured"))
    optimizer = torch.optim.SGD(out.parameters(), lr=0.1)
    out(torch.randn(4, 1, 6, 6)).square().mean().backward()
    optimizer.step()
    out(torch.randn(4, 1, 6, 6))
    masks = from_torch_prune(out).masks
    assert all(bool((out.get_parameter(f"{n}_orig").grad[~m] == 0).all()) for n, m in masks.items())


def test_the_way_through_a_folder(tmp_path: object) -> None:
    result = pruned("unstructured")
    folder = prunus.save(result, tmp_path / "x")  # type: ignore[operator]
    masks = load_masks(folder)
    back = from_torch_prune(to_torch_prune(result)).masks
    assert all(torch.equal(back[n].reshape(m.shape), m) for n, m in masks.items())


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("conv1.weight_mask", None, "has no conv1.weight_mask"),
        ("conv1.weight_mask", torch.ones(3), r"\(3,\)"),
        ("conv1.weight_mask", torch.full((8, 1, 3, 3), 0.5), "other numbers than 0 and 1"),
        ("conv1.weight", torch.ones(8, 1, 3, 3), "is there beside"),
    ],
)
def test_pairs_that_do_not_fit_are_named(name: str, value: Tensor | None, match: str) -> None:
    state = dict(by_torch().state_dict())
    if value is None:
        state.pop(name)
    else:
        state[name] = value
    with pytest.raises(SpecError, match=match):
        from_torch_prune(state)


def test_originals_of_spectral_norm_are_left_alone() -> None:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).eval()
    prune.l1_unstructured(model[1], "weight", 0.5)
    found = from_torch_prune(model)
    assert sorted(found.masks) == ["1.weight"] and "0.weight_orig" in found.state
    again = nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)).eval()
    again.load_state_dict(found.state)
    x = torch.randn(3, 4)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
