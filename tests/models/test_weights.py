import hashlib
import io
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from lib.models import blackbox
from lib.models.weights import load_reference_state, read_checkpoint, read_weights, todays


@pytest.fixture
def cached(monkeypatch, tmp_path):
    """A torch cache that holds one file by a name with its true hash, as the default weights of ResNet-18."""
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    state, checkpoints = models.resnet18(weights=None).state_dict(), tmp_path / "checkpoints"
    checkpoints.mkdir()
    torch.save(state, checkpoints / "new.pth")
    digest = hashlib.sha256((checkpoints / "new.pth").read_bytes()).hexdigest()[:8]
    file = (checkpoints / "new.pth").rename(checkpoints / f"resnet18-{digest}.pth")
    entry = models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", f"https://example.org/{file.name}")
    return file, state


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)


@pytest.mark.parametrize("name", ["imagenet", "IMAGENET1K_V1", "path"])
def test_cached_weights_by_each_of_their_names(cached, offline, name):
    file, state = cached
    read = read_weights("resnet18", file if name == "path" else name)
    assert all(torch.equal(value, state[key]) for key, value in read.items())


def test_a_download_goes_to_the_cache_and_its_hash_is_asked_for(monkeypatch, tmp_path, cached):
    file, state = cached
    content = file.read_bytes()
    file.unlink()
    asked = []

    def download(url, target, prefix, progress):
        asked.append((url, target, prefix))
        Path(target).write_bytes(content)

    monkeypatch.setattr("torch.hub.download_url_to_file", download)
    model = blackbox("resnet18", 1000, weights="IMAGENET1K_V1")
    assert torch.equal(model.fc.weight, state["fc.weight"])
    assert asked == [(f"https://example.org/{file.name}", str(file), file.stem.removeprefix("resnet18-"))]


@pytest.mark.parametrize("weights, file", [("imagenet", "11ad3fa6"), ("IMAGENET1K_V1", "0676ba61")])
def test_offline_one_sentence_says_what_is_missing_and_where_it_goes(monkeypatch, tmp_path, offline, weights, file):
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(RuntimeError) as error:
        blackbox("resnet50", 2, weights=weights)
    message, name = str(error.value), f"resnet50-{file}.pth"
    assert message.startswith("weights: ResNet50_Weights.IMAGENET1K_V")
    assert f"https://download.pytorch.org/models/{name} cannot be downloaded" in message
    assert f"put that file at {tmp_path / 'checkpoints' / name}, or give its path as weights" in message
    assert "\n" not in message
    assert error.value.__suppress_context__


@pytest.mark.parametrize("wrong", ["IMAGENET1K_V9", "ResNet18_Weights.IMAGENET1K_V1", "resnet50.pth"])
def test_what_is_neither_a_name_nor_a_file_is_said(wrong):
    said = rf"expected imagenet, one of IMAGENET1K_V1, .* or the path.* no file at {wrong}"
    with pytest.raises(FileNotFoundError, match=said):
        read_weights("resnet50", wrong)
    for none in (wrong, "imagenet"):
        with pytest.raises(FileNotFoundError, match=r"weights: expected the path of a file for .compact., .* no file"):
            blackbox("compact", 2, weights=none)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_file(tmp_path, suffix):
    source, path = models.resnet18(weights=None, num_classes=7), tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    same, other = blackbox("resnet18", 7, weights=path), blackbox("resnet18", 2, weights=str(path))
    grey = blackbox("resnet18", 2, weights=path, in_channels=1)
    assert torch.equal(same.fc.weight, source.fc.weight)
    assert torch.equal(other.layer4[1].bn2.weight, source.layer4[1].bn2.weight)
    assert torch.equal(other.conv1.weight, source.conv1.weight)
    torch.testing.assert_close(grey.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    with pytest.raises(ValueError, match=r'weights=.* for resnet34: does not fit ResNet: Missing .*"layer1\.2\.conv1'):
        blackbox("resnet34", 2, weights=path)


def test_the_older_names_of_densenet_are_todays_and_counts_of_batches_start_at_0():
    block, conv, bias = "features.denseblock2.denselayer3", torch.rand(2), torch.rand(1)
    found = todays(nn.BatchNorm2d(1), {f"{block}.conv.2.weight": conv, f"{block}.norm.1.bias": bias})
    assert found == {"num_batches_tracked": 0, f"{block}.conv2.weight": conv, f"{block}.norm1.bias": bias}


def test_mnasnet_is_loaded_as_it_is_today():
    """A state dict without version makes torchvision rebuild MNASNet's first layers."""
    source, target = (models.mnasnet0_5(weights=None) for _ in range(2))
    load_reference_state(target, dict(source.state_dict()))
    assert target.layers[0].out_channels == source.layers[0].out_channels == 16
    assert torch.equal(target.layers[0].weight, source.layers[0].weight)


def saved(**options):
    buffer = io.BytesIO()
    torch.save({"a": torch.rand(50, 50)}, buffer, **options)
    return buffer.getvalue()


CUT = [saved(_use_new_zipfile_serialization=new)[:end] for new in (True, False) for end in (0, 1, 7, 5000, 10000)]
OTHERS = [b"<html>not found</html>", b"\x89PNG\r\n\x1a\n" + bytes(60), b"version git-lfs"]


@pytest.mark.parametrize("name", ["other.pth", "other.safetensors"])
@pytest.mark.parametrize("content", CUT + OTHERS, ids=len)
def test_a_file_cut_short_or_of_another_kind_is_told_in_one_sentence(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    said = rf"{name}: damaged, cut short, or neither a PyTorch nor a safetensors file \(\d+ bytes\)$"
    with pytest.raises(ValueError, match=said):
        read_checkpoint(tmp_path / name)
