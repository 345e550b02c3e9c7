import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as T

from lib.metrics.faithfulness import (
    GRID_STEPS,
    aopc,
    aopc_between,
    deletion_curve,
    deletion_hits,
    perturbation_curve,
    perturbation_grid,
)


def mean_predict(images):
    """Two classes; the probability of the second is the mean pixel value."""
    mean = images.mean((1, 2, 3))
    return torch.stack([1 - mean, mean], 1)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


ONE = torch.ones(1, dtype=torch.long)
# 4 x 4 image of four 2 x 2 tiles with the values 1, 0, 0.5, 0.25; the map ranks them 3rd, 1st, 4th, 2nd.
IMAGE = torch.tensor([[1.0, 0.0], [0.5, 0.25]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None, None]
MAP = torch.tensor([[2.0, 4.0], [-1.0, 3.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1)[None]


@pytest.mark.parametrize(
    ("perturbation", "expected"),
    [
        ("black", [1.75, 1.75, 1.5, 0.5, 0, 0, 0]),
        ("white", [1.75, 2.75, 3.5, 3.5, 4, 4, 4]),
        ("gray", [1.75, 2.25, 2.5, 2, 2, 2, 2]),
    ],
)
def test_constant_perturbations_by_hand(perturbation, expected):
    curve = perturbation_curve(mean_predict, IMAGE, MAP, ONE, tile=2, steps=6, perturbation=perturbation)
    assert curve[0].tolist() == [value / 4 for value in expected]
    other = perturbation_curve(mean_predict, IMAGE, MAP, ONE * 0, tile=2, steps=6, perturbation=perturbation)
    assert torch.equal(other, 1 - curve)


@pytest.mark.parametrize("perturbation", ["uniform", "blur"])
def test_last_step_replaces_the_whole_image(perturbation):
    seen = []

    def predict(images):
        seen.append(images)
        return mean_predict(images)

    images = noise(2, 3, 40, 30)
    perturbation_curve(predict, images, noise(2, 40, 30), ONE.repeat(2), 8, 20, perturbation, batch_size=7, seed=3)
    inputs = torch.cat(seen).view(2, 21, 3, 40, 30)
    blurred = T.gaussian_blur(images, [13, 13], [2.0, 2.0])
    full = {"uniform": noise(3, 40, 30, seed=3).expand(2, -1, -1, -1), "blur": blurred}[perturbation]
    assert torch.equal(inputs[:, 0], images)
    assert torch.allclose(inputs[:, -1], full)
    changed = (inputs[:, 1:] != inputs[:, :-1]).any(2).sum((2, 3))
    assert changed.max() <= 64 and (changed.sum(1) >= 0.99 * 40 * 30).all()


def test_ties_are_broken_by_position_and_a_sparse_map_loses_one_tile_a_step():
    removed = []

    def predict(images):
        removed.extend((images == 0).sum((1, 2, 3)).tolist())
        return mean_predict(images)

    curve = perturbation_curve(predict, torch.ones(1, 1, 6, 6), torch.zeros(1, 6, 6), ONE, tile=2, steps=9)
    assert removed == [4 * k for k in range(10)]
    ramp = torch.arange(36.0).view(1, 1, 6, 6) / 36
    curve = perturbation_curve(mean_predict, ramp, torch.zeros(1, 6, 6), ONE, tile=6, steps=1)
    assert curve[0].tolist() == pytest.approx([17.5 / 36, 0])


def test_least_relevant_first_by_hand():
    curve = perturbation_curve(mean_predict, IMAGE, MAP, ONE, tile=2, steps=5, order="lerf")
    assert curve[0].tolist() == [value / 4 for value in [1.75, 1.25, 0.25, 0, 0, 0]]
    constant = [
        perturbation_curve(mean_predict, IMAGE, MAP * 0, ONE, 2, 5, order=order).tolist() for order in ("morf", "lerf")
    ]
    assert constant[0] == constant[1] == [[value / 4 for value in [1.75, 0.75, 0.75, 0.25, 0, 0]]]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), side=st.integers(1, 9), tile=st.integers(1, 4), scale=st.sampled_from([0.25, 1, 64]))
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


def test_area_between_the_curves():
    morf, lerf = torch.tensor([[0.8, 0.2, 0.2]]), torch.tensor([[0.8, 0.8, 0.5]])
    assert torch.allclose(aopc_between(morf, lerf), torch.tensor([[0, 0.6 / 2, 0.9 / 3]]))
    assert torch.allclose(aopc_between(lerf, morf), -aopc_between(morf, lerf))


def test_grid_is_its_curves_with_one_pass_for_the_untouched_images():
    passes = []

    def predict(images):
        passes.append(len(images))
        return mean_predict(images)

    images, maps, targets = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1), torch.tensor([1, 0, 1])
    kinds, steps = ("black", "uniform", "blur"), {4: 20, 8: 3}
    grid = perturbation_grid(predict, images, maps, targets, (4, 8), kinds, steps, batch_size=7, seed=5)
    assert sum(passes) == 3 * (1 + len(kinds) * (16 + 3)) and max(passes) <= 7
    assert list(grid) == [(tile, kind) for tile in (4, 8) for kind in kinds]
    for (tile, kind), curve in grid.items():
        alone = perturbation_curve(mean_predict, images, maps, targets, tile, steps[tile], kind, seed=5)
        assert torch.allclose(curve, alone, atol=1e-6)
    lerf = perturbation_grid(mean_predict, images, maps, targets, (8,), ("white",), 4, order="lerf")[8, "white"]
    assert torch.allclose(lerf, perturbation_curve(mean_predict, images, -maps, targets, 8, 4, "white"), atol=1e-6)
    assert GRID_STEPS == {4: 100, 8: 100, 16: 49, 32: 49}


@pytest.mark.parametrize(("kind", "work"), [("blur", "gaussian_blur"), ("uniform", "rand")])
def test_what_replaces_tiles_is_worked_out_once(kind, work, monkeypatch):
    place = T if work == "gaussian_blur" else torch
    original, calls = getattr(place, work), []
    images, maps = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1)
    monkeypatch.setattr(place, work, lambda *a, **k: calls.append(1) or original(*a, **k))
    perturbation_curve(mean_predict, images, maps, ONE.repeat(3), 4, 16, kind, batch_size=5)
    assert len(calls) == (3 if kind == "blur" else 1)


def slow_curve(image, heat, tile, steps, value):
    """Mean of the image after each step: one tile, one pixel at a time."""
    height, width = len(heat), len(heat[0])
    image, tiles = [row[:] for row in image], []
    for y in range(0, height, tile):
        for x in range(0, width, tile):
            area = [(i, j) for i in range(y, min(y + tile, height)) for j in range(x, min(x + tile, width))]
            tiles.append((-sum(heat[i][j] for i, j in area) / len(area), y, x, area))
    tiles.sort(key=lambda entry: entry[:3])
    curve = []
    for k in range(steps + 1):
        if 0 < k <= len(tiles):
            for i, j in tiles[k - 1][3]:
                image[i][j] = value
        curve.append(sum(map(sum, image)) / (height * width))
    return curve


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 5))
def test_curve_against_loops(seed, height, width, tile):
    images, maps = noise(2, 1, height, width, seed=seed).double(), noise(2, height, width, seed=seed + 1).double() - 0.5
    curve = perturbation_curve(mean_predict, images, maps, ONE.repeat(2), tile, 7, "gray")
    for n in range(2):
        expected = slow_curve(images[n, 0].tolist(), maps[n].tolist(), tile, 7, 0.5)
        assert curve[n].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("perturbation", ["black", "uniform", "blur"])
def test_batch_size_order_and_scale_do_not_matter(perturbation):
    images, maps = noise(5, 3, 16, 16), noise(5, 16, 16, seed=1)
    targets = torch.tensor([0, 1, 1, 0, 1])

    def curve(order=slice(None), scale=1.0, batch_size=64):
        return perturbation_curve(
            mean_predict, images[order], maps[order] * scale, targets[order], 4, 10, perturbation, batch_size
        )

    whole, order = curve(), torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(curve(batch_size=1), whole) and torch.allclose(curve(batch_size=13), whole)
    assert torch.allclose(curve(order), whole[order])
    assert torch.allclose(curve(scale=8.0), whole)


def test_a_predictor_that_works_in_place_leaves_the_images_as_they_are():
    def predict(images):
        return mean_predict(images.clamp_(0, 0.5))

    images, maps = noise(1, 1, 8, 8), noise(1, 8, 8, seed=1)
    before = images.clone()
    perturbation_grid(predict, images, maps, ONE, (4, 8), ("black", "uniform", "blur"), 3, batch_size=1)
    assert torch.equal(images, before)


def test_batches_stay_within_batch_size_and_without_gradient():
    def predict(images):
        assert len(images) <= 5 and not torch.is_grad_enabled()
        return mean_predict(images)

    curve = perturbation_curve(predict, noise(3, 1, 8, 8), noise(3, 8, 8), ONE.repeat(3), 2, 100, batch_size=5)
    assert curve.shape == (3, 101) and torch.equal(curve[:, 16], curve[:, 100])
    assert torch.is_grad_enabled()


def test_aopc_by_hand():
    curve = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.2, 0.8]])
    expected = [[0, 0.4 / 2, 1.2 / 3], [0, 0, -0.6 / 3]]
    assert torch.allclose(aopc(curve), torch.tensor(expected))
    assert torch.allclose(aopc(curve.mean(0)), torch.tensor(expected).mean(0))


def bright(images):
    """Class 1 while the mean pixel is above 0.3."""
    mean = images.mean((1, 2, 3))
    return torch.stack([torch.full_like(mean, 0.3), mean], 1)


def test_deletion_by_hand():
    images = IMAGE.repeat(2, 1, 1, 1)
    hits = deletion_hits(bright, images, MAP.repeat(2, 1, 1), torch.tensor([1, 0]), k=5, patch=2)
    assert hits.tolist() == [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
    ]  # the second is misclassified at the start, and stays in
    curve = deletion_curve(bright, images, MAP.repeat(2, 1, 1), torch.tensor([1, 1]), k=5, patch=2)
    assert curve.tolist() == [1, 1, 1, 0, 0, 0]


def test_deletion_ranks_by_maximum_and_fills_with_the_mean():
    image, heat = torch.zeros(1, 1, 2, 4), torch.tensor([[[9.0, 0, 3, 3], [0, 0, 3, 3]]])
    image[..., :2], seen = 1.0, []

    def predict(images):
        seen.append(images)
        return mean_predict(images)

    deletion_hits(predict, image, heat, ONE, k=1, patch=2, fill="mean")
    assert seen[0][1, 0].tolist() == [[0.5, 0.5, 0, 0]] * 2


@pytest.mark.parametrize("fill", ["zero", "mean", "blur"])
def test_deletion_keeps_a_constant_image_unless_filled_with_zero(fill):
    images = torch.full((1, 3, 20, 20), 0.4)  # nine patches; the mean stays above 0.3 until a quarter is black
    hits = deletion_hits(bright, images, noise(1, 20, 20), ONE, 9, 7, fill, batch_size=3)[0].tolist()
    assert hits == sorted(hits, reverse=True)
    assert sum(hits) in ((3, 4) if fill == "zero" else (10,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGE[0]}, r"images: expected floats \(N >= 1, C, H, W\), got torch.float32 of \(1, 4, 4\)"),
        ({"images": IMAGE * 2}, r"images: expected values in \[0, 1\], got 0 to 2"),
        ({"maps": MAP[:, :2]}, r"maps: expected shape \(1, 4, 4\) to match images, got \(1, 2, 4\)"),
        ({"targets": torch.ones(1)}, r"targets: expected integers of shape \(1,\), got torch.float32"),
        ({"targets": ONE * 2}, "targets: expected 0..1, got 2..2"),
        ({"tile": 0}, "tile: expected an integer of at least 1, got 0"),
        ({"steps": -1}, "steps: expected an integer of at least 1, got -1"),
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"order": "MoRF"}, "order: expected one of morf, lerf, got 'MoRF'"),
        ({"perturbation": "red"}, "perturbation: expected one of black, white, gray, uniform, blur, got 'red'"),
        ({"predict": lambda x: mean_predict(x) * 9}, "predict: expected probabilities, got"),
        ({"predict": lambda x: x.mean((1, 2, 3))}, r"predict: expected finite values of shape \(64, K\)|\(5, K\)"),
    ],
)
def test_errors(change, message):
    arguments = {"predict": mean_predict, "images": IMAGE, "maps": MAP, "targets": ONE, "tile": 2, "steps": 4}
    with pytest.raises(ValueError, match=message):
        perturbation_curve(**arguments | change)


def test_other_errors():
    with pytest.raises(ValueError, match="fill: expected one of zero, mean, blur, got 'black'"):
        deletion_curve(mean_predict, IMAGE, MAP, ONE, fill="black")
    with pytest.raises(ValueError, match=r"labels: expected integers of shape \(1,\)"):
        deletion_curve(mean_predict, IMAGE, MAP, ONE.repeat(2))
    with pytest.raises(ValueError, match="patch: expected an integer of at least 1, got 0"):
        deletion_curve(mean_predict, IMAGE, MAP, ONE, patch=0)
    with pytest.raises(ValueError, match=r"curve: expected floats of shape \(\.\.\., steps \+ 1\)"):
        aopc(torch.zeros(3, 0))
    with pytest.raises(ValueError, match=r"lerf: expected shape \(3, 2\) to match morf, got \(3, 4\)"):
        aopc_between(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"steps\[2\]: expected an integer of at least 1, got None"):
        perturbation_grid(mean_predict, IMAGE, MAP, ONE, tiles=(2,))
    with pytest.raises(
        ValueError, match="perturbations: expected one of black, white, gray, uniform, blur, got 'mean'"
    ):
        perturbation_grid(mean_predict, IMAGE, MAP, ONE, perturbations=("black", "mean"))
