import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from perturbing import IMAGE, MAP, ONE, Recorder, in_batches, mean_predict, noise
from torchvision.transforms.v2 import functional as T

from lib import metrics as m
from lib.metrics.perturbation import PERTURBATIONS, Remembering

SEEDS = st.integers(0, 10**6)


@pytest.fixture(autouse=True, scope="module")
def small_batches():
    with in_batches(7):
        yield


SHOWN = mean_predict, IMAGE, MAP, ONE


@pytest.mark.parametrize(
    ("found", "quarters"),
    [
        (lambda: m.perturbation_curve(*SHOWN, 2, 6, "black"), [1.75, 1.75, 1.5, 0.5, 0, 0, 0]),
        (lambda: m.perturbation_curve(*SHOWN, 2, 6, "white"), [1.75, 2.75, 3.5, 3.5, 4, 4, 4]),
        (lambda: m.perturbation_curve(*SHOWN, 2, 6, "black", order="lerf"), [1.75, 1.25, 0.25, 0, 0, 0, 0]),
        (lambda: 1 - m.perturbation_curve(*SHOWN[:3], ONE * 0, 2, 3), [1.75, 1.75, 1.5, 0.5]),  # the other class
        (lambda: m.insertion_curve(*SHOWN, 2, start="black"), [0, 0, 0.25, 1.25, 1.75]),
        (lambda: m.insertion_curve(*SHOWN, 2, start="mean"), [1.75, 1.3125, 1.125, 1.6875, 1.75]),
        # eight steps over four tiles; half a tile is rounded to the even number
        (lambda: m.insertion_curve(*SHOWN, 2, 8, "black"), [0, 0, 0, 0.25, 0.25, 0.25, 1.25, 1.75, 1.75]),
        # kept: max(1, round(0.05 * 4)) = 1 tile (0), then 2 (0 and 0.25), then 3 (also 1), then all
        (lambda: m.sufficiency(*SHOWN, (0.05, 0.5, 0.75, 1), 2, "black"), [1.75, 1.5, 0.5, 0]),
        (lambda: m.sufficiency(*SHOWN, (0.25,), 2, "mean"), [1.75 - 1.3125]),
    ],
)
def test_curves_by_hand(found, quarters):
    assert found()[0].tolist() == [quarter / 4 for quarter in quarters]


@pytest.mark.parametrize("perturbation", ["uniform", "blur"])
def test_last_step_replaces_the_whole_image(perturbation):
    images, recorder = noise(2, 3, 40, 30), Recorder()
    m.perturbation_curve(recorder, images, noise(2, 40, 30), ONE.repeat(2), 8, 20, perturbation, seed=3)
    inputs = recorder.images(2)
    blurred = T.gaussian_blur(images, [13, 13], [2.0, 2.0])
    full = {"uniform": noise(3, 40, 30, seed=3).expand(2, -1, -1, -1), "blur": blurred}[perturbation]
    assert torch.equal(inputs[:, 0], images)
    assert torch.allclose(inputs[:, -1], full)
    changed = (inputs[:, 1:] != inputs[:, :-1]).any(2).sum((2, 3))
    assert changed.max() <= 64 and (changed.sum(1) >= 0.99 * 40 * 30).all()


def test_grid_is_its_curves_with_one_pass_for_the_untouched_images():
    recorder = Recorder()
    images, maps, targets = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1), torch.tensor([1, 0, 1])
    grid = m.perturbation_grid(recorder, images, maps, targets, {4: 16, 8: 3}, seed=5)
    passes = [len(shown) for shown in recorder]
    assert sum(passes) == 3 * (1 + 5 * (16 + 3)) and max(passes) <= 7
    assert list(grid) == [(tile, kind) for tile in (4, 8) for kind in PERTURBATIONS]
    for (tile, kind), curve in grid.items():
        alone = m.perturbation_curve(mean_predict, images, maps, targets, tile, curve.shape[1] - 1, kind, seed=5)
        assert torch.allclose(curve, alone, atol=1e-6)


@pytest.mark.parametrize(("kind", "work"), [("blur", "gaussian_blur"), ("uniform", "rand")])
def test_what_replaces_tiles_is_worked_out_once(kind, work, monkeypatch):
    place = T if work == "gaussian_blur" else torch
    original, calls = getattr(place, work), []
    images, maps = noise(3, 1, 16, 16), noise(3, 16, 16, seed=1)
    monkeypatch.setattr(place, work, lambda *a, **k: calls.append(1) or original(*a, **k))
    m.perturbation_curve(mean_predict, images, maps, ONE.repeat(3), 4, 16, kind)
    assert len(calls) == (3 if kind == "blur" else 1)


def ranked_areas(heat, tile):
    """The pixels of each tile, highest mean first, equal ones by position."""
    tiles = []
    for y in range(0, heat.shape[0], tile):
        for x in range(0, heat.shape[1], tile):
            area = [(i, j) for i in range(y, min(y + tile, len(heat))) for j in range(x, min(x + tile, heat.shape[1]))]
            tiles.append((-sum(heat[place].item() for place in area) / len(area), y, x, area))
    return [area for *_, area in sorted(tiles, key=lambda entry: entry[:3])]


@pytest.mark.parametrize("order", ["morf", "lerf"])
@settings(max_examples=30)
@given(seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 5))
def test_curves_are_their_definition_in_loops(order, seed, height, width, tile):
    images, maps = noise(2, 1, height, width, seed=seed).double(), noise(2, height, width, seed=seed + 1).double() - 0.5
    maps[0] = (2 * maps[0]).round()  # with ties
    curve = m.perturbation_curve(mean_predict, images, maps, ONE.repeat(2), tile, 7, "gray", order=order)
    for n in range(2):
        image, expected = images[n, 0].clone(), []
        areas = ranked_areas(maps[n] if order == "morf" else -maps[n], tile)
        for k in range(8):
            for place in areas[k - 1] if 0 < k <= len(areas) else ():
                image[place] = 0.5
            expected.append(image.mean().item())
        assert curve[n].tolist() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25)
@given(
    seed=SEEDS, height=st.integers(1, 9), width=st.integers(1, 9), tile=st.integers(1, 4),
    fill=st.sampled_from(["black", "white", "uniform", "blur"]),
)  # fmt: skip
def test_insertion_is_the_removal_of_the_others(seed, height, width, tile, fill):
    images, maps = noise(3, 1, height, width, seed=seed + 2), noise(3, height, width, seed=seed + 1) - 0.5
    given = mean_predict, images, maps, torch.tensor([1, 0, 1]), tile
    tiles = -(-height // tile) * -(-width // tile)
    lerf = m.perturbation_curve(*given, tiles, fill, seed=seed, order="lerf")
    inserted = m.insertion_curve(*given, start=fill, seed=seed)
    assert torch.allclose(inserted.flip(1), lerf, atol=1e-6)
    for share, drop in zip((0.3, 1), m.sufficiency(*given[:4], (0.3, 1), tile, fill, seed=seed).T, strict=True):
        assert torch.allclose(drop, inserted[:, -1] - inserted[:, max(1, round(share * tiles))], atol=1e-6)


def test_an_image_that_was_answered_is_not_shown_again():
    images, maps, recorder = noise(3, 1, 8, 8), noise(3, 8, 8, seed=1), Recorder()
    given = Remembering(recorder), images, maps
    with in_batches(64):
        curve = m.perturbation_curve(*given, ONE.repeat(3), 4, 3, "gray")
        assert sum(map(len, recorder)) == 3 * 4
        assert torch.equal(m.perturbation_curve(*given, ONE.repeat(3), 4, 3, "gray"), curve)  # asks for nothing
        assert len(recorder) == 1
        m.perturbation_curve(*given, ONE.repeat(3), 4, 4, "gray")  # the last step alone
        assert len(recorder[-1]) == 3
        m.perturbation_curve(*given, ONE.repeat(3), 4, 4, "black")  # all but the untouched images
        assert len(recorder[-1]) == 3 * 4
        lerf = m.perturbation_curve(*given, ONE.repeat(3), 4, 4, "gray", order="lerf")  # all but the first and last
        assert len(recorder[-1]) == 3 * 3
        others = m.perturbation_curve(given[0], images.flip(0), maps.flip(0), ONE.repeat(3), 4, 4, "gray", order="lerf")
        assert len(recorder) == 4 and torch.equal(others.flip(0), lerf)  # by the image, not by its place
    assert torch.equal(curve, m.perturbation_curve(mean_predict, *given[1:], ONE.repeat(3), 4, 3, "gray"))


def test_tiles_may_become_a_colour_of_a_value_per_channel():
    images, recorder = noise(2, 3, 4, 4), Recorder()
    m.deletion_hits(recorder, images, noise(2, 4, 4, seed=1), ONE.repeat(2), k=4, patch=2, fill=(0.1, 0.2, 0.3))
    expected = torch.tensor([0.1, 0.2, 0.3])[:, None, None].expand(2, 3, 4, 4)
    assert torch.equal(recorder.images(2)[:, -1], expected)


def test_equal_states_cost_one_pass():
    recorder = Recorder()
    m.insertion_curve(recorder, *SHOWN[1:], tile=2, steps=100)
    m.perturbation_curve(recorder, *SHOWN[1:], tile=2, steps=100)
    m.sufficiency(recorder, *SHOWN[1:], shares=(0.01, 0.02, 1), tile=2)
    assert [len(shown) for shown in recorder] == [5, 5, 2]


def bright(images):
    """Class 1 while the mean pixel is above 0.3."""
    mean = images.mean((1, 2, 3))
    return torch.stack([torch.full_like(mean, 0.3), mean], 1)


def test_deletion_by_hand():
    given = bright, IMAGE.repeat(2, 1, 1, 1), MAP.repeat(2, 1, 1)
    hits = m.deletion_hits(*given, torch.tensor([1, 0]), k=5, patch=2)
    assert hits.tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]  # the second, misclassified at first, stays in
    assert m.deletion_curve(*given, torch.tensor([1, 1]), k=5, patch=2).tolist() == [1, 1, 1, 0, 0, 0]
    outputs = m.deletion_hits(lambda x: 9 * bright(x), 2 * IMAGE - 1, MAP, ONE, k=1, patch=2)  # any space, any output
    assert outputs.shape == (1, 2)


def test_deletion_ranks_by_maximum_and_fills_with_the_mean():
    image, heat, recorder = torch.zeros(1, 1, 2, 4), torch.tensor([[[9.0, 0, 3, 3], [0, 0, 3, 3]]]), Recorder()
    image[..., :2] = 1.0
    m.deletion_hits(recorder, image, heat, ONE, k=1, patch=2, fill="mean")
    assert recorder[0][1, 0].tolist() == [[0.5, 0.5, 0, 0]] * 2


def test_predictors_work_without_gradient_and_may_work_in_place():
    def predict(images):
        assert len(images) <= 7 and not torch.is_grad_enabled()
        return mean_predict(images.clamp_(0, 0.5))

    images, maps = noise(3, 1, 8, 8), noise(3, 8, 8, seed=1)
    before = images.clone()
    m.perturbation_grid(predict, images, maps, ONE.repeat(3), {4: 3, 8: 3})
    curve = m.perturbation_curve(predict, images, maps, ONE.repeat(3), 2, 100)
    assert curve.shape == (3, 101) and torch.equal(curve[:, 16], curve[:, 100])
    assert torch.equal(images, before) and torch.is_grad_enabled()


def test_aopc_and_area_by_hand():
    curve = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.2, 0.8]])
    expected = [[0, 0.4 / 2, 1.2 / 3], [0, 0, -0.6 / 3]]
    assert torch.allclose(m.aopc(curve), torch.tensor(expected))
    assert torch.allclose(m.aopc(curve.mean(0)), torch.tensor(expected).mean(0))
    curve = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1 / 3, 2 / 3, 1]], dtype=torch.float64)
    assert m.area_under_curve(curve).tolist() == pytest.approx([0.5, 1, 0.5])


GIVEN, CURVE = {"predict": mean_predict, "images": IMAGE, "maps": MAP}, m.perturbation_curve


@pytest.mark.parametrize(
    ("metric", "change", "message"),
    [
        (CURVE, {"images": IMAGE[0]}, r"images: expected floats \(N >= 1, .* got torch.float32 of \(1, 4"),
        (m.insertion_curve, {"images": IMAGE / 0}, r"images: expected values in \[0, 1\], got \[nan"),
        (m.sufficiency, {"maps": MAP[:, :2]}, r"maps: expected shape \(1, 4, 4\) to match images, .* of \(1, 2, 4\)"),
        (CURVE, {"targets": torch.ones(1)}, r"targets: expected integers of shape \(1,\), got torch"),
        (CURVE, {"targets": ONE * 2}, r"targets: expected values in \[0, 1\], got \[2.0, 2.0\]"),
        (CURVE, {"tile": 0}, "tile: expected at least 1, got 0"),
        (CURVE, {"order": "MoRF"}, "order: expected morf or lerf, got 'MoRF'"),
        (CURVE, {"perturbation": "red"}, "fill: expected one of .*, uniform, blur, .* got 'red'"),
        (CURVE, {"predict": lambda x: mean_predict(x) * 9}, r"predict: expected values in \[0, 1\], got"),
        (CURVE, {"predict": lambda x: x.mean((1, 2, 3))}, r"predict: expected finite values of shape \(5"),
        (m.deletion_curve, {"labels": ONE.repeat(2)}, r"labels: expected integers of shape \(1,\), got .* of \(2,\)"),
        (m.deletion_curve, {"labels": ONE, "patch": 0}, "patch: expected at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_said(metric, change, message):
    more = {} if metric is m.deletion_curve else {"targets": ONE, "tile": 2}
    with pytest.raises(ValueError, match=message):
        metric(**GIVEN | more | change)
