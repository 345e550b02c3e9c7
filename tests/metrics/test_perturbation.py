import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perturbing import IMAGE, MAP, ONE, Recorder, in_batches, mean_predict, noise
from torchvision.transforms.v2 import functional as T

from lib.metrics import (
    aopc,
    area_under_curve,
    deletion_curve,
    deletion_hits,
    faithfulness_correlation,
    insertion_curve,
    perturbation_curve,
    perturbation_grid,
    sufficiency,
)
from lib.metrics.perturbation import GRID_STEPS, PERTURBATIONS, tile_rank

SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    with in_batches(7):
        yield


def quarters(*values):
    return [value / 4 for value in values]


@pytest.mark.parametrize(
    ("perturbation", "order", "expected"),
    [
        ("black", "morf", quarters(1.75, 1.75, 1.5, 0.5, 0, 0, 0)),
        ("white", "morf", quarters(1.75, 2.75, 3.5, 3.5, 4, 4, 4)),
        ("gray", "morf", quarters(1.75, 2.25, 2.5, 2, 2, 2, 2)),
        ("black", "lerf", quarters(1.75, 1.25, 0.25, 0, 0, 0, 0)),
    ],
)
def test_curves_by_hand(perturbation, order, expected):
    curve = perturbation_curve(mean_predict, IMAGE, MAP, ONE, 2, 6, perturbation, order=order)
    assert curve[0].tolist() == expected
    other = perturbation_curve(mean_predict, IMAGE, MAP, ONE * 0, 2, 6, perturbation, order=order)
    assert torch.equal(other, 1 - curve)


@pytest.mark.parametrize("perturbation", ["uniform", "blur"])
def test_last_step_replaces_the_whole_image(perturbation):
    images, recorder = noise(2, 3, 40, 30), Recorder()
    perturbation_curve(recorder, images, noise(2, 40, 30), ONE.repeat(2), 8, 20, perturbation, seed=3)
    inputs = recorder.images(2)
    blurred = T.gaussian_blur(images, [13, 13], [2.0, 2.0])
    full = {"uniform": noise(3, 40, 30, seed=3).expand(2, -1, -1, -1), "blur": blurred}[perturbation]
    assert torch.equal(inputs[:, 0], images)
    assert torch.allclose(inputs[:, -1], full)
    changed = (inputs[:, 1:] != inputs[:, :-1]).any(2).sum((2, 3))
    assert changed.max() <= 64 and (changed.sum(1) >= 0.99 * 40 * 30).all()


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_ties_are_broken_by_position_and_a_sparse_map_loses_one_tile_a_step(order):
    maps = torch.zeros(1, 6, 6)
    maps[0, 2, 2] = 1.0 if order == "morf" else -1.0
    assert tile_rank(maps, 2, order)[0].tolist() == [1, 2, 3, 4, 0, 5, 6, 7, 8]
    recorder = Recorder()
    perturbation_curve(recorder, torch.ones(1, 1, 6, 6), maps, ONE, tile=2, steps=9, order=order)
    assert (recorder.images(1) == 0).sum((2, 3, 4)).tolist() == [[4 * k for k in range(10)]]
    constant = perturbation_curve(mean_predict, IMAGE, MAP * 0, ONE, 2, 5, order=order)
    assert constant.tolist() == [quarters(1.75, 0.75, 0.75, 0.25, 0, 0)]


@settings(max_examples=25)
@given(seed=SEEDS, side=st.integers(1, 9), tile=st.integers(1, 4), scale=st.sampled_from([0.25, 1, 64]))
def test_least_relevant_first_is_the_other_end_of_the_ranking(seed, side, tile, scale):
    images = noise(2, 1, side, side, seed=seed)
    maps = torch.randperm(2 * side * side, generator=torch.Generator().manual_seed(seed)).view(2, side, side).float()
    maps = maps.repeat_interleave(tile, 1).repeat_interleave(tile, 2)[:, :side, :side]  # no two tiles are equal
    tiles = (-(-side // tile)) ** 2
    lerf, flipped, morf = (
        perturbation_curve(mean_predict, images, heat, ONE.repeat(2), tile, tiles + 2, "black", order=order)
        for heat, order in ((maps * scale, "lerf"), (-maps, "morf"), (maps, "morf"))
    )
    assert lerf.shape == (2, tiles + 3) and torch.equal(lerf, flipped)
    # What is lost to the k first and to the other tiles adds up to all of the image.
    assert torch.allclose(lerf[:, : tiles + 1] + morf[:, : tiles + 1].flip(1), lerf[:, :1], atol=1e-5)
    assert torch.allclose(lerf[:, 0], images.mean((1, 2, 3)))


def test_grid_is_its_curves_with_one_pass_for_the_untouched_images():
    recorder = Recorder()
    images, maps, targets = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1), torch.tensor([1, 0, 1])
    grid = perturbation_grid(recorder, images, maps, targets, {4: 16, 8: 3}, seed=5)
    passes = [len(shown) for shown in recorder.seen]
    assert sum(passes) == 3 * (1 + 5 * (16 + 3)) and max(passes) <= 7
    assert list(grid) == [(tile, kind) for tile in (4, 8) for kind in PERTURBATIONS]
    for (tile, kind), curve in grid.items():
        alone = perturbation_curve(mean_predict, images, maps, targets, tile, curve.shape[1] - 1, kind, seed=5)
        assert torch.allclose(curve, alone, atol=1e-6)
    assert GRID_STEPS == {4: 100, 8: 100, 16: 49, 32: 49}


@pytest.mark.parametrize(("kind", "work"), [("blur", "gaussian_blur"), ("uniform", "rand")])
def test_what_replaces_tiles_is_worked_out_once(kind, work, monkeypatch):
    place = T if work == "gaussian_blur" else torch
    original, calls = getattr(place, work), []
    images, maps = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1)
    monkeypatch.setattr(place, work, lambda *a, **k: calls.append(1) or original(*a, **k))
    perturbation_curve(mean_predict, images, maps, ONE.repeat(3), 4, 16, kind)
    assert len(calls) == (3 if kind == "blur" else 1)


def ranked_areas(heat, tile):
    """The pixels of each tile, highest mean first, equal ones by position."""
    tiles = []
    for y in range(0, heat.shape[0], tile):
        for x in range(0, heat.shape[1], tile):
            area = [(i, j) for i in range(y, min(y + tile, len(heat))) for j in range(x, min(x + tile, heat.shape[1]))]
            tiles.append((-sum(heat[place].item() for place in area) / len(area), y, x, area))
    return [area for *_, area in sorted(tiles, key=lambda entry: entry[:3])]


@settings(max_examples=30)
@given(seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 5))
def test_curve_against_loops(seed, height, width, tile):
    images, maps = noise(2, 1, height, width, seed=seed).double(), noise(2, height, width, seed=seed + 1).double() - 0.5
    curve = perturbation_curve(mean_predict, images, maps, ONE.repeat(2), tile, 7, "gray")
    for n in range(2):
        image, areas, expected = images[n, 0].clone(), ranked_areas(maps[n], tile), []
        for k in range(8):
            for place in areas[k - 1] if 0 < k <= len(areas) else ():
                image[place] = 0.5
            expected.append(image.mean().item())
        assert curve[n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("black", quarters(0, 0, 0.25, 1.25, 1.75)),
        ("white", quarters(4, 3, 2.25, 2.25, 1.75)),
        ("gray", quarters(2, 1.5, 1.25, 1.75, 1.75)),
        ("mean", quarters(1.75, 1.3125, 1.125, 1.6875, 1.75)),
    ],
)
def test_insertion_by_hand(start, expected):
    curve = insertion_curve(mean_predict, IMAGE, MAP, ONE, tile=2, start=start)
    assert curve[0].tolist() == expected
    assert torch.equal(insertion_curve(mean_predict, IMAGE, MAP, ONE, 2, 2, start), curve[:, ::2])
    # Eight steps over four tiles; half a tile is rounded to the even number.
    many = insertion_curve(mean_predict, IMAGE, MAP, ONE, 2, 8, start)
    assert torch.equal(many, curve[:, [0, 0, 1, 2, 2, 2, 3, 4, 4]])


@settings(max_examples=25)
@given(
    seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 4),
    fill=st.sampled_from(["black", "white", "uniform", "blur"]),
)  # fmt: skip
def test_insertion_is_the_removal_of_the_others(seed, height, width, tile, fill):
    images, maps = noise(3, 1, height, width, seed=seed + 2), noise(3, height, width, seed=seed + 1) - 0.5
    given = mean_predict, images, maps, torch.tensor([1, 0, 1]), tile
    tiles = -(-height // tile) * -(-width // tile)
    lerf = perturbation_curve(*given, tiles, fill, seed=seed, order="lerf")
    inserted = insertion_curve(*given, start=fill, seed=seed)
    assert torch.allclose(inserted.flip(1), lerf, atol=1e-6)
    for share, drop in zip((0.3, 1), sufficiency(*given[:4], (0.3, 1), tile, fill, seed=seed).T, strict=True):
        assert torch.allclose(drop, inserted[:, -1] - inserted[:, max(1, round(share * tiles))], atol=1e-6)


def test_sufficiency_by_hand():
    # Kept: max(1, round(0.05 * 4)) = 1 tile (0), then 2 (0 and 0.25), then 3 (also 1), then all.
    drop = sufficiency(mean_predict, IMAGE, MAP, ONE, shares=(0.05, 0.5, 0.75, 1), tile=2, fill="black")
    assert drop[0].tolist() == quarters(1.75, 1.5, 0.5, 0)
    mean = sufficiency(mean_predict, IMAGE, MAP, ONE, shares=(0.25,), tile=2)
    assert mean.tolist() == [[0.4375 - 0.4375 * 0.75]]


def test_equal_states_cost_one_pass():
    recorder = Recorder()
    insertion_curve(recorder, IMAGE, MAP, ONE, tile=2, steps=100)
    perturbation_curve(recorder, IMAGE, MAP, ONE, tile=2, steps=100)
    sufficiency(recorder, IMAGE, MAP, ONE, shares=(0.01, 0.02, 1), tile=2)
    assert [len(shown) for shown in recorder.seen] == [5, 5, 2]


def bright(images):
    """Class 1 while the mean pixel is above 0.3."""
    mean = images.mean((1, 2, 3))
    return torch.stack([torch.full_like(mean, 0.3), mean], 1)


def test_deletion_by_hand():
    images = IMAGE.repeat(2, 1, 1, 1)
    hits = deletion_hits(bright, images, MAP.repeat(2, 1, 1), torch.tensor([1, 0]), k=5, patch=2)
    # the second is misclassified at the start, and stays in
    assert hits.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
    curve = deletion_curve(bright, images, MAP.repeat(2, 1, 1), torch.tensor([1, 1]), k=5, patch=2)
    assert curve.tolist() == [1, 1, 1, 0, 0, 0]
    outputs = deletion_hits(lambda x: 9 * bright(x), 2 * IMAGE - 1, MAP, ONE, k=1, patch=2)  # any space, any output
    assert outputs.shape == (1, 2)


def test_deletion_ranks_by_maximum_and_fills_with_the_mean():
    image, heat = torch.zeros(1, 1, 2, 4), torch.tensor([[[9.0, 0, 3, 3], [0, 0, 3, 3]]])
    image[..., :2], recorder = 1.0, Recorder()
    deletion_hits(recorder, image, heat, ONE, k=1, patch=2, fill="mean")
    assert recorder.seen[0][1, 0].tolist() == [[0.5, 0.5, 0, 0]] * 2


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_deletion_keeps_a_constant_image_unless_filled_with_zero(fill):
    images = torch.full((1, 3, 20, 20), 0.4)  # nine patches; the mean stays above 0.3 until a quarter is black
    hits = deletion_hits(bright, images, noise(1, 20, 20), ONE, 9, 7, fill)[0].tolist()
    assert hits == sorted(hits, reverse=True)
    assert sum(hits) in ((3, 4) if fill == "zero" else (10,))


def test_predictors_work_without_gradient_and_may_work_in_place():
    def predict(images):
        assert len(images) <= 7 and not torch.is_grad_enabled()
        return mean_predict(images.clamp_(0, 0.5))

    images, maps = noise(3, 1, 8, 8), noise(3, 8, 8, seed=1)
    before = images.clone()
    perturbation_grid(predict, images, maps, ONE.repeat(3), {4: 3, 8: 3})
    curve = perturbation_curve(predict, images, maps, ONE.repeat(3), 2, 100)
    assert curve.shape == (3, 101) and torch.equal(curve[:, 16], curve[:, 100])
    assert torch.equal(images, before) and torch.is_grad_enabled()


def test_aopc_and_area_by_hand():
    curve = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.2, 0.8]])
    expected = [[0, 0.4 / 2, 1.2 / 3], [0, 0, -0.6 / 3]]
    assert torch.allclose(aopc(curve), torch.tensor(expected))
    assert torch.allclose(aopc(curve.mean(0)), torch.tensor(expected).mean(0))
    curve = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1 / 3, 2 / 3, 1]], dtype=torch.float64)
    assert area_under_curve(curve).tolist() == pytest.approx([0.5, 1, 0.5])
    assert area_under_curve(curve[0]).item() == pytest.approx(0.5)


def linear(weight):
    """Two classes; the probability of the second is linear in the pixels."""

    def predict(images):
        probability = 0.5 + (images * weight).sum((1, 2, 3))
        return torch.stack([1 - probability, probability], 1)

    return predict


def squared(images):
    return mean_predict(images**2)


@pytest.mark.parametrize("tile", [1, 3, 4])
@pytest.mark.parametrize("fill", ["black", "gray", "blur", "mean", "uniform"])
def test_correlation_is_one_for_the_exact_attribution_of_a_linear_model(tile, fill):
    images, weight = noise(3, 3, 10, 8, seed=7).double(), (noise(1, 3, 10, 8, seed=1).double() - 0.5) / 200
    maps = (images * weight).sum(1)
    options = {"subset": 4, "runs": 30, "tile": tile, "fill": fill}
    found = faithfulness_correlation(linear(weight), images, maps, ONE.repeat(3), **options)
    against = faithfulness_correlation(linear(weight), images, -maps, ONE.repeat(3), **options)
    other = faithfulness_correlation(linear(weight), images, maps, ONE.repeat(3) * 0, **options)
    assert torch.equal(found, -against) and torch.allclose(found, -other, atol=1e-4)
    if fill == "black":
        assert found.tolist() == pytest.approx([1] * 3, abs=1e-5)
    else:
        assert (found < 1 - 1e-4).all()


def slow_pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return top / (sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b)) ** 0.5


@settings(max_examples=20)
@given(seed=SEEDS, height=st.integers(3, 7), width=st.integers(3, 7), tile=st.integers(1, 2))
def test_correlation_against_loops(seed, height, width, tile):
    image, heat = noise(1, 1, height, width, seed=seed).double(), noise(1, height, width, seed=seed + 1).double() - 0.3
    recorder = Recorder()
    found = faithfulness_correlation(lambda x: recorder(x**2), image, heat, ONE, 2, 12, tile, "white", seed=seed)
    gone = [shown == 1 for shown in recorder.images(1)[0, 1:, 0]]
    sums, drops = [heat[0][mask].sum().item() for mask in gone], []
    for mask in gone:
        drops.append(sum(v**2 - 1 for v in image[0, 0][mask].tolist()) / (height * width))
    assert found.item() == pytest.approx(slow_pearson(sums, drops), abs=1e-4)


def test_sets_of_tiles_have_their_size_and_do_not_depend_on_the_images():
    images, maps = 0.5 + noise(2, 1, 6, 6) / 2, noise(2, 6, 6, seed=1)

    def sets(runs, seed):
        recorder = Recorder()
        faithfulness_correlation(recorder, images, maps, ONE.repeat(2), 3, runs, 2, seed=seed)
        return (recorder.images(2) == 0)[..., ::2, ::2].flatten(2)

    first, second = sets(200, seed=4)
    assert torch.equal(first, second) and not first[0].any() and (first[1:].sum(1) == 3).all()
    assert torch.equal(first, sets(200, seed=4)[0]) and not torch.equal(first, sets(200, seed=5)[0])
    assert (first[1:].float().mean(0) - 1 / 3).abs().max() < 0.15
    assert len(first.unique(dim=0)) > 45  # of 84
    found = [faithfulness_correlation(squared, images, maps + more, ONE.repeat(2), 3, 30, 2) for more in (0, 2)]
    assert torch.allclose(*found, atol=1e-5)  # as many pixels in every set of whole tiles


def test_undefined_correlations():
    images = noise(4, 1, 7, 7)  # the tiles of the border are cut
    maps = noise(4, 7, 7, seed=1)
    maps[0] = 0.3  # constant, though its sums over tiles differ
    maps[1] = torch.tensor([[1.0, -1], [-1, 1]]).repeat(4, 4)[:7, :7]  # only the tile of one pixel has a sum
    maps[2] = 0
    found = faithfulness_correlation(squared, images, maps, ONE.repeat(4), 2, 80, 2)
    assert found.isnan().tolist() == [True, False, True, False]
    whole_tiles = faithfulness_correlation(squared, images[..., :6, :6], maps[..., :6, :6], ONE.repeat(4), 2, 20, 2)
    assert whole_tiles.isnan().tolist() == [True, True, True, False]
    indifferent = faithfulness_correlation(lambda x: mean_predict(1e-9 * x), images, maps, ONE.repeat(4), 2, 20, 2)
    assert indifferent.isnan().all()


GIVEN = {"predict": mean_predict, "images": IMAGE, "maps": MAP}


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        (perturbation_curve, {"images": IMAGE[0]}, r"images: expected floats \(N >= 1, .* got torch.float32 of \(1, 4"),
        (perturbation_curve, {"images": IMAGE * 2}, r"images: expected values in \[0, 1\], got \[0.0, 2.0\]"),
        (insertion_curve, {"images": IMAGE / 0}, r"images: expected values in \[0, 1\], got \[nan"),
        (sufficiency, {"maps": MAP[:, :2]}, r"maps: expected shape \(1, 4, 4\) to match images, .* of \(1, 2, 4\)"),
        (perturbation_curve, {"targets": torch.ones(1)}, r"targets: expected integers of shape \(1,\), got torch"),
        (perturbation_curve, {"targets": ONE * 2}, r"targets: expected values in \[0, 1\], got \[2.0, 2.0\]"),
        (perturbation_curve, {"tile": 0}, "tile: expected at least 1, got 0"),
        (perturbation_curve, {"order": "MoRF"}, "order: expected morf or lerf, got 'MoRF'"),
        (perturbation_curve, {"perturbation": "red"}, "fill: expected one of .*, uniform, blur, .* got 'red'"),
        (perturbation_curve, {"predict": lambda x: mean_predict(x) * 9}, r"predict: expected values in \[0, 1\], got"),
        (perturbation_curve, {"predict": lambda x: x.mean((1, 2, 3))}, r"predict: expected finite values of shape \(5"),
        (faithfulness_correlation, {"subset": 4}, "subset: expected fewer than the 4 tiles of an image, got 4"),
        (deletion_curve, {"labels": ONE.repeat(2)}, r"labels: expected integers of shape \(1,\), got .* of \(2,\)"),
        (deletion_curve, {"labels": ONE, "patch": 0}, "patch: expected at least 1, got 0"),
    ],
)
def test_errors(metric, change, message):
    more = {} if metric is deletion_curve else {"targets": ONE, "tile": 2}
    with pytest.raises(ValueError, match=message):
        metric(**GIVEN | more | change)
