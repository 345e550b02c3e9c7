import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.metrics.correlation import draw_subsets, faithfulness_correlation

ONE = torch.ones(1, dtype=torch.long)


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def linear(weight):
    """Two classes; the probability of the second is linear in the pixels."""

    def predict(images):
        probability = 0.5 + (images * weight).sum((1, 2, 3))
        return torch.stack([1 - probability, probability], 1)

    return predict


def squared(images):
    mean = (images**2).mean((1, 2, 3))
    return torch.stack([1 - mean, mean], 1)


@pytest.mark.parametrize("tile", [1, 3, 4])
@pytest.mark.parametrize("fill", ["black", "gray", "blur", "mean", "uniform"])
def test_one_for_the_exact_attribution_of_a_linear_model(tile, fill):
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
@given(seed=st.integers(0, 10**6), height=st.integers(3, 7), width=st.integers(3, 7), tile=st.integers(1, 2))
def test_against_loops(seed, height, width, tile):
    image, heat = noise(1, 1, height, width, seed=seed).double(), noise(1, height, width, seed=seed + 1).double() - 0.3
    found = faithfulness_correlation(squared, image, heat, ONE, 2, 12, tile, "white", batch_size=5, seed=seed)
    columns = -(-width // tile)
    sums, drops = [], []
    for row in draw_subsets(-(-height // tile) * columns, 2, 12, seed).tolist():
        places = [(y, x) for y in range(height) for x in range(width) if row[y // tile * columns + x // tile]]
        sums.append(sum(heat[0, y, x].item() for y, x in places))
        drops.append(sum(image[0, 0, y, x].item() ** 2 - 1 for y, x in places) / (height * width))
    assert found.item() == pytest.approx(slow_pearson(sums, drops), abs=1e-4)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), fill=st.sampled_from(["black", "uniform", "blur"]), scale=st.floats(1e-3, 1e3))
def test_batch_size_order_scale_and_offset(seed, fill, scale):
    images, maps, targets = noise(4, 1, 8, 8, seed=seed + 2), noise(4, 8, 8, seed=seed + 1), torch.tensor([1, 0, 1, 0])

    def correlation(order=slice(None), scale=1.0, offset=0.0, batch_size=64):
        heat = maps[order].double() * scale + offset
        return faithfulness_correlation(
            squared, images[order], heat, targets[order], 3, 10, 2, fill, batch_size, seed=seed
        )

    whole, order = correlation(), torch.tensor([2, 0, 3, 1])
    assert whole.shape == (4,) and whole.abs().max() <= 1
    assert torch.allclose(correlation(batch_size=3), whole, atol=1e-4)
    assert torch.allclose(correlation(order), whole[order], atol=1e-4)
    assert torch.allclose(correlation(scale=scale), whole, atol=1e-5)
    assert torch.allclose(correlation(offset=2.0), whole, atol=1e-5)  # as many pixels in every set of whole tiles


def test_subsets_have_their_size_and_do_not_depend_on_the_images():
    subsets = draw_subsets(10, 3, 200, seed=4)
    assert subsets.shape == (200, 10) and (subsets.sum(1) == 3).all()
    assert torch.equal(subsets, draw_subsets(10, 3, 200, seed=4))
    assert not torch.equal(subsets, draw_subsets(10, 3, 200, seed=5))
    assert (subsets.float().mean(0) - 0.3).abs().max() < 0.15
    assert len(subsets.unique(dim=0)) > 60  # of 120

    seen = []

    def predict(images):
        seen.append(images == 0)
        return squared(images)

    images = 0.5 + noise(2, 1, 6, 6) / 2
    faithfulness_correlation(predict, images, noise(2, 6, 6, seed=1), ONE.repeat(2), 3, 5, 2, batch_size=4)
    removed = torch.cat(seen).view(2, 6, 36)
    assert torch.equal(removed[0], removed[1]) and removed[0].sum(1).tolist() == [0, 12, 12, 12, 12, 12]


def test_undefined_values():
    images = noise(4, 1, 7, 7)  # the tiles of the border are cut
    maps = noise(4, 7, 7, seed=1)
    maps[0] = 0.3  # constant, though its sums over tiles differ
    maps[1] = torch.tensor([[1.0, -1], [-1, 1]]).repeat(4, 4)[:7, :7]  # only the tile of one pixel has a sum
    maps[2] = 0
    found = faithfulness_correlation(squared, images, maps, ONE.repeat(4), 2, 80, 2)
    assert found.isnan().tolist() == [True, False, True, False]
    whole_tiles = faithfulness_correlation(squared, images[..., :6, :6], maps[..., :6, :6], ONE.repeat(4), 2, 20, 2)
    assert whole_tiles.isnan().tolist() == [True, True, True, False]

    def indifferent(images):
        return torch.stack([1e-9 * images.mean((1, 2, 3)), 1 - 1e-9 * images.mean((1, 2, 3))], 1)

    assert faithfulness_correlation(indifferent, images, maps, ONE.repeat(4), 2, 20, 2).isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subset": 4}, "subset: expected fewer than the 4 tiles of an image, got 4"),
        ({"subset": 0}, "subset: expected an integer of at least 1, got 0"),
        ({"runs": 1}, "runs: expected at least 2 to correlate, got 1"),
        ({"tile": 0}, "tile: expected an integer of at least 1, got 0"),
        ({"fill": "zero"}, "fill: expected one of black, .*, mean, got 'zero'"),
        ({"images": noise(1, 1, 4, 4) + 1}, r"images: expected values in \[0, 1\], got 1"),
        ({"targets": ONE + 1}, r"targets: expected 0\.\.1, got 2\.\.2"),
    ],
)
def test_errors(change, message):
    arguments = {"predict": squared, "images": noise(1, 1, 4, 4), "maps": noise(1, 4, 4), "targets": ONE}
    with pytest.raises(ValueError, match=message):
        faithfulness_correlation(**arguments | {"subset": 2, "tile": 2} | change)
