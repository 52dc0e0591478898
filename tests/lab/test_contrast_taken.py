"""Arms on an edited problem, masks of one run in another, learning without labels, exact claims."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.core.errors import DataError, SpecError, StructureError
from prunus.lab import claims, contrast
from prunus.lab.contrast import Claim, Contrast, Problem, Record, Run, Sheet, Spec, Tier, arm, problem, unlabelled
from prunus.lab.contrast.contrast import BODY, taking
from prunus.lab.contrast.perform import perform
from prunus.lab.contrast.sweep import sheet, sweep, unpacked
from prunus.lab.contrast.taken import carried, density, settled
from prunus.lab.contrast.trial import here
from prunus.lab.data import Loader
from prunus.lab.store import Store

MICRO = Problem(
    name="micro",
    network="mlp",
    options={"hidden": [16, 8]},
    data="digits",
    images=96,
    epochs=2,
    tune=1,
    batch=32,
    rates=(0.1, 0.01),
    calib=1,
)
TINY = Tier(
    name="tiny",
    problems=(MICRO.model_copy(update={"epochs": 1, "rates": (0.1,)}),),
    seeds=(0, 1),
    most_points=2,
    says="nothing",
)
FIRST, SECOND = (0.0, 0.5), (0.5, 1.0)


# What a run is known by


def test_settings_that_came_later_leave_the_keys_of_earlier_specs_as_they_were() -> None:
    dense = Spec(problem=MICRO, epochs=2, rate=0.1, seed=0)
    snip = Spec(problem=MICRO, recipe=prunus.methods.get("snip").to_dict(), keep=0.25, epochs=1, rate=0.1, seed=0)
    # Written down before there were masks, classes, thinned and learns.
    assert dense.key == "79c10d1334a0abc5f59c3faa1ffc2aed145fc7b2d05a8c59122ef85038bc0c6d"
    assert snip.key == "3ad04aef7b5dd97e1d161fec337dd5e8358f4e289499e55463bb0d3009021c41"
    edits = ({"classes": FIRST}, {"classes": SECOND}, {"thinned": 2}, {"learns": "views"}, {"learns": "pixels"})
    edited = [snip.model_copy(update={"problem": MICRO.edited(e)}).key for e in edits]
    masks = [snip.model_copy(update={"masks": m}).key for m in ("a", "b")]
    assert len({dense.key, snip.key, *edited, *masks}) == 9


def test_a_part_of_the_classes_is_what_a_slow_search_finds() -> None:
    whole, half = MICRO.dataset(), MICRO.edited({"classes": SECOND}).dataset()
    for part in ("train", "valid", "test"):
        there, here_ = getattr(whole, part), getattr(half, part)
        wanted = [(x, int(y) - 5) for x, y in zip(there.x, there.y, strict=True) if int(y) >= 5]
        assert len(here_) == len(wanted) and here_.y.tolist() == [y for _, y in wanted]
        assert all(torch.equal(a, b) for a, (b, _) in zip(here_.x, wanted, strict=True))
    assert half.num_classes == 5 and half.digest != whole.digest
    with pytest.raises(SpecError, match="that is none"):
        MICRO.edited({"classes": (0.31, 0.39)}).dataset()


def test_a_thinned_problem_has_fewer_images_and_as_many_steps() -> None:
    few, all_ = MICRO.edited({"thinned": 10}), MICRO
    assert few.steps_per_epoch == all_.steps_per_epoch
    x = all_.train().x
    assert all(torch.equal(few.train().x[i], x[10 * (i // 10)]) for i in range(96))


def test_options_are_added_to_a_network_and_forgotten_with_it() -> None:
    assert MICRO.edited({"options": {"width": 0.5}}).options == {"hidden": [16, 8], "width": 0.5}
    assert MICRO.edited({"network": "resnet8"}).options == {}
    assert MICRO.edited({}) is MICRO
    with pytest.raises(ValueError, match="learns"):
        MICRO.edited({"learns": "gossip"})


# Masks of another run


SMALL = Contrast(
    name="small",
    title="",
    section="",
    question="?",
    on={"classes": SECOND},
    arms=(taking("own", "here"), taking("other", "there"), taking("anew", "there", without="reinit")),
    aside=(
        arm("here", "magnitude", "none", granularity=BODY),
        arm("there", "magnitude", "none", granularity=BODY, where={"classes": FIRST}),
    ),
    claims=(Claim(id="x", text="x", left="other", right="own"),),
)


def test_masks_are_those_that_the_other_run_of_the_seed_ended_with(tmp_path: Path) -> None:
    store, whole = Store(tmp_path / "runs.db"), contrast.with_baselines(SMALL)
    wanted = ("own", "other", "anew", "dense", "other, same layer shares")
    whole = replace(whole, arms=tuple(a for a in whole.arms if a.name in wanted))
    tier = TINY.model_copy(update={"seeds": (1,), "most_points": 1})
    counts = sweep([whole], tier, store)
    found, place = sheet(whole, tier, store), here().key
    assert counts.failed == 0 and found.due() == [] and not found.unequal()

    def made(name: str, keep: float, seed: int) -> tuple[Spec, Record, dict[str, Tensor]]:
        spec = found.spec(contrast.Cell("micro", name, keep), 0.1, seed)
        assert spec is not None
        blob, run = store.blob(spec.key, place, "masks"), found.runs[spec.key]
        assert blob is not None and run.record is not None
        return spec, run.record, unpacked(blob)

    for keep in tier.points(SMALL.points):
        for seed in tier.seeds:
            sources = {n: made(n, keep, seed) for n in ("here", "there")}
            for name, source in (("own", "here"), ("other", "there"), ("anew", "there")):
                spec, record, masks = made(name, keep, seed)
                assert spec.masks == sources[source][0].key and spec.parent is None
                assert masks.keys() == sources[source][2].keys() and "layers.4.weight" not in masks
                assert all(torch.equal(m, sources[source][2][n]) for n, m in masks.items())
                assert record.initial == perform_initial(spec)
            shuffled = made("other, same layer shares", keep, seed)[2]
            assert all(int(m.sum()) == int(shuffled[n].sum()) for n, m in sources["there"][2].items())
            assert any(not torch.equal(m, shuffled[n]) for n, m in sources["there"][2].items())
            assert not all(torch.equal(m, sources["here"][2][n]) for n, m in sources["there"][2].items())
            # The masks of the source are those of the largest weights of a network that learned the other classes.
            first = sources["there"][0]
            assert first.problem.classes == FIRST and first.epochs == 0 and first.parent is not None
    store.close()


def perform_initial(spec: Spec) -> str:
    from prunus.lab.contrast.perform import digest

    return digest(spec.problem.initial(spec.seed).state_dict())


def test_weights_that_masks_remove_stay_zero_while_the_rest_is_trained() -> None:
    spec = Spec(
        problem=MICRO,
        recipe=SMALL.arms[0].recipe.to_dict(),  # type: ignore[union-attr]
        keep=0.5,
        epochs=1,
        rate=0.1,
        seed=0,
        masks="some run",
    )
    start = MICRO.initial(0).state_dict()
    masks = {n: torch.rand(start[n].shape) < 0.37 for n in ("layers.0.weight", "layers.2.weight")}
    made = perform(spec, masks=masks)
    for name, mask in masks.items():
        assert torch.equal(made.masks[name], mask) and not made.weights[name][~mask].any()
        assert (made.weights[name][mask] != start[name][mask]).any()
    kept = sum(int(m.sum()) for m in masks.values())
    assert made.record.sparsity == pytest.approx(1 - kept / sum(m.numel() for m in masks.values()))
    with pytest.raises(DataError, match="masks"):
        perform(spec)
    with pytest.raises(DataError, match="masks"):
        perform(spec.model_copy(update={"masks": None}), masks=masks)


def test_masks_are_stretched_block_by_block_and_what_does_not_fit_is_refused() -> None:
    from prunus.lab import zoo

    def ranked(model: nn.Module) -> set[str]:
        return {m.param for g in BODY(model) for m in g.members}

    old, new = (zoo.build(n, width=0.25, in_channels=1) for n in ("resnet14", "resnet20"))
    named = dict(old.named_parameters())
    masks = {n: torch.rand_like(named[n]) < 0.5 for n in ranked(old)}
    found = carried(masks, new, ranked(new))
    for stage in range(3):
        for block in range(3):
            for conv in ("conv1", "conv2"):
                source = f"stages.{stage}.{0 if block == 0 else 1}.{conv}.weight"
                assert torch.equal(found[f"stages.{stage}.{block}.{conv}.weight"], masks[source])
    assert torch.equal(found["conv1.weight"], masks["conv1.weight"]) and len(found) == 1 + 3 * 3 * 2
    with pytest.raises(StructureError, match="do not fit"):
        carried(masks, zoo.build("resnet20", width=0.5, in_channels=1), ranked(new))
    with pytest.raises(StructureError, match="nothing here takes"):
        carried({**masks, "more": masks["conv1.weight"]}, old, ranked(old))
    with torch.no_grad():
        next(old.parameters()).zero_()
    assert SMALL.arms[0].recipe is not None
    with pytest.raises(StructureError, match="zero where the masks keep"):
        settled(old, prunus.Task(example=(torch.zeros(1, 1, 8, 8),)), SMALL.arms[0].recipe, masks, 0)
    assert density({"a": torch.tensor([True, False, False])}).density == pytest.approx(1 / 3)


def made_up(initial: dict[str, str]) -> Sheet:
    """Everything run, with what each began with: by `classes` of its problem, or as the seed says."""
    whole, runs = contrast.with_baselines(SMALL), dict[str, Run]()
    plain = {"test": 0.5, "valid": 0.5, "sparsity": 0.5, "params_dense": 9, "params_kept": 5, "macs_dense": 9}
    while due := Sheet(whole, TINY, runs).due():
        for s in due:
            begins = initial.get(str(s.problem.classes), "") + f"{s.seed} {s.parent}"
            runs[s.key] = Run(Record.model_validate({**plain, "macs_kept": 5, "initial": begins}))
    return Sheet(whole, TINY, runs)


def test_runs_that_should_begin_alike_are_held_to_it_across_the_runs_that_give_masks() -> None:
    assert not made_up({}).unequal()
    # What is trained on the other classes is dense, and begins with the initial weights of these ones.
    told = made_up({str(FIRST): "other "}).unequal()
    assert len(told) == 2 and all("initial" in line for line in told)


def test_contrasts_name_only_what_they_have() -> None:
    with pytest.raises(SpecError, match="takes over masks of 'nobody'"):
        replace(SMALL, arms=(taking("own", "nobody"),), claims=())
    with pytest.raises(SpecError, match="two arms of one name"):
        replace(SMALL, aside=(*SMALL.aside, arm("own", "snip")))
    with pytest.raises(SpecError, match="has no metric"):
        replace(SMALL, claims=(Claim(id="x", text="x", left="own", right="other", metric="shares"),))
    bare = Sheet(SMALL, TINY, {})
    with pytest.raises(SpecError, match="with_baselines"):
        bare.due()


# Without labels


@pytest.mark.parametrize("learns", ["views", "pixels"])
def test_labels_are_never_seen_by_what_learns_without_them(learns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = prunus.methods.get("snip").to_dict()
    spec = Spec(problem=MICRO.edited({"learns": learns}), recipe=recipe, keep=0.5, epochs=2, rate=0.1, seed=0)
    known, real = perform(spec), problem._dataset

    def mixed(name: str, classes: tuple[float, float] = (0.0, 1.0)) -> object:
        found = real(name, classes)
        parts = {p: getattr(found, p) for p in ("train", "valid", "test")}
        return replace(found, **{n: replace(p, y=p.y[torch.randperm(len(p))]) for n, p in parts.items()})

    monkeypatch.setattr(problem, "_dataset", mixed)
    blind = perform(spec)
    assert all(torch.equal(w, blind.weights[n]) for n, w in known.weights.items())
    assert all(torch.equal(m, blind.masks[n]) for n, m in known.masks.items())
    assert known.record.valid == blind.record.valid
    assert known.record.test > blind.record.test + 0.1, "the linear classifier alone reads labels"


def test_networks_begin_alike_whatever_they_learn() -> None:
    plain = MICRO.initial(3).state_dict()
    for learns, width in (("views", unlabelled.WIDTH), ("pixels", 64)):
        other = MICRO.edited({"learns": learns}).initial(3).state_dict()
        last = {"layers.4.weight", "layers.4.bias"}
        assert all(torch.equal(plain[n], other[n]) for n in plain.keys() - last)
        assert other["layers.4.weight"].shape == (width, 8)


def test_views_are_repeatable_and_of_the_images_that_they_stand_beside() -> None:
    loader = Loader(MICRO.train(), 32, seed=4, shuffle=True)
    one, two = (list(unlabelled.Unlabelled(loader, "views").batches(1)) for _ in range(2))
    assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(one, two, strict=True))
    for (views, partner), (images, _) in zip(one, loader.batches(1), strict=True):
        assert partner.tolist() == [(i + 32) % 64 for i in range(64)]
        assert not torch.equal(views[:32], views[32:])
        middle = (images.mean((1, 2, 3)) - images.mean()).repeat(2)
        assert float(torch.corrcoef(torch.stack([middle, views.mean((1, 2, 3))]))[0, 1]) > 0.2
    x = torch.rand(4, 1, 8, 8)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    seen = unlabelled.view(x, torch.Generator().manual_seed(0))
    assert seen.shape == x.shape and torch.equal(torch.get_rng_state(), state)


def test_the_contrastive_loss_is_that_of_the_paper() -> None:
    z = torch.randn(8, 5, dtype=torch.float64)
    total = 0.0
    for i in range(8):
        j = (i + 4) % 8
        like = [math.exp(float(torch.cosine_similarity(z[i], z[k], dim=0)) / unlabelled.TEMPERATURE) for k in range(8)]
        total -= math.log(like[j] / sum(v for k, v in enumerate(like) if k != i))
    partner = torch.arange(8).roll(4)
    assert float(unlabelled.loss("views", z, partner)) == pytest.approx(total / 8)
    x = torch.randn(3, 4)
    assert float(unlabelled.loss("pixels", x, x + 2)) == pytest.approx(4.0)
    y = torch.tensor([0, 1, 3])
    assert float(unlabelled.loss("labels", x, y)) == pytest.approx(float(nn.functional.cross_entropy(x, y)))


def test_pictures_that_are_right_have_all_of_the_variance() -> None:
    split = MICRO.dataset().valid
    assert unlabelled.told(Whole(), split, "pixels") == pytest.approx(1.0)
    assert unlabelled.told(Whole(0.0), split, "pixels") == 0.0
    assert unlabelled.told(Whole(), split, "views") > 10 / 250


class Whole(nn.Module):
    """The image itself, or nothing of it."""

    def __init__(self, share: float = 1.0) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, x: Tensor) -> Tensor:
        return self.share * x.flatten(1)


def test_the_probe_is_a_regression_of_what_the_last_layer_is_given() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    dataset = MICRO.dataset()
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    found = unlabelled.probe(model, dataset.train, dataset.test, 10, (1, 5))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())

    def given(split: object) -> Tensor:
        return model[:3](split.inputs(split.x)).detach().double()  # type: ignore[attr-defined]

    x, tested = given(dataset.train), given(dataset.test)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    other = linear_model.LogisticRegression(C=1 / (len(x) * unlabelled.DECAY), max_iter=2000, tol=1e-8)
    other.fit(((x - mean) / std).numpy(), dataset.train.y.numpy())
    right = float((other.predict(((tested - mean) / std).numpy()) == dataset.test.y.numpy()).mean())
    assert found[1] == pytest.approx(right, abs=0.01) and found[5] > found[1] > 0.5
    with pytest.raises(DataError, match="no linear layer"):
        unlabelled.probe(nn.Flatten(), dataset.train, dataset.test, 10)


def test_views_and_pixels_are_of_images() -> None:
    tokens = replace(MICRO.dataset(), kind="tokens")
    assert unlabelled.outputs(tokens, "labels") == 10
    with pytest.raises(DataError, match="are of images"):
        unlabelled.outputs(tokens, "views")


# Exact claims


def test_exact_claims_are_refuted_by_one_pair_or_by_all() -> None:
    words = [claims.exact(v, 2, none=n).word for v in ([0.0, 0.0], [0.0, 3.0], [1.0, 3.0]) for n in (True, False)]
    assert words == ["supported", "refuted", "refuted", "inconclusive", "refuted", "supported"]
    assert claims.exact([], 0, none=True).word == claims.exact([0.0], 1, none=True).word == "too few runs"


def test_shares_of_layers_are_compared_on_other_data() -> None:
    whole = contrast.with_baselines(contrast.get("data"))
    plain = {"test": 0.5, "valid": 0.5, "sparsity": 0.5, "params_dense": 9, "params_kept": 5, "macs_dense": 9}
    runs: dict[str, Run] = {}
    while due := Sheet(whole, TINY, runs).due():
        for s in due:
            # Data-free: by the density alone. Otherwise: the first layer takes from the second where the data say so.
            other = 5 if s.method in ("snip", "magnitude") and s.problem.classes == FIRST else 0
            kept = round(100 * s.keep)
            layers = [{"name": n, "weights": 200, "kept": k} for n, k in (("a", kept + other), ("b", kept - other))]
            more = {"macs_kept": 5, "initial": f"{s.seed} {s.parent}", "layers": layers if s.recipe else []}
            runs[s.key] = Run(Record.model_validate({**plain, **more}))
    found = Sheet(whole, TINY, runs)
    said = {c.id: found.judged(c) for c in whole.claims if c.exact}
    assert {i: v.word for i, v in said.items()} == dict.fromkeys(
        ("shares-ratio", "shares-synflow", "shares-noise", "shares-snip", "shares-magnitude"), "supported"
    )
    assert "4 of 4 pairs" in said["shares-snip"].told and "average 2.00" in said["shares-snip"].told
    turned = replace(next(c for c in whole.claims if c.id == "shares-snip"), exact="none")
    assert found.judged(turned).word == "refuted"
