import pickle
import re

import numpy as np
import pytest
import torch
from golden_values import CPU, MODELS, assert_summary
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from lib.explain import explain
from lib.models import (
    Explainer,
    ExplainerClassifier,
    blackbox,
    explainer_classifier,
    load_reference_checkpoint,
    load_reference_state,
    softcam,
    to_softcam,
)
from lib.models.reference import HEAD, STEM, _architecture


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_the_reference_code_gives_its_output(name, tmp_path):
    MODELS[name](CPU, tmp_path)


def test_xml_checkpoint_fills_both_parts_or_one(golden, formula_weights, tmp_path):
    parts = {"classifier": "xml_vgg_keys", "explainer": "xml_explainer_keys"}
    states = {part: formula_weights(golden[keys]) for part, keys in parts.items()}
    path = tmp_path / "best.pt"
    torch.save({**states, "optimiser": {"state": {}}, "epoch": 3, "best_loss": 0.5, "best_acc": 0.75}, path)
    whole = load_reference_checkpoint(path, explainer_classifier("vgg-gated", 2))
    assert torch.equal(whole.explainer.decoder[0][2].weight, states["explainer"]["conv_mod3.conv1.weight"])
    assert torch.equal(whole.explainer.upsample[2].bias, states["explainer"]["tr_conv2.bias"])
    assert torch.equal(whole.classifier.dense[6].weight, states["classifier"]["last_dense.weight"])
    for part in (
        load_reference_checkpoint(path, Explainer()),
        load_reference_checkpoint(path, blackbox("vgg-gated", 2)),
    ):
        twin = whole.explainer if isinstance(part, Explainer) else whole.classifier
        assert all(
            torch.equal(a, b) for a, b in zip(part.state_dict().values(), twin.state_dict().values(), strict=True)
        )


def test_own_and_torchvision_names_are_read_as_they_are(tmp_path):
    for number, build in enumerate((lambda: softcam("compact", 3, width=4), lambda: blackbox("compact", 3, width=4))):
        source, path = build(), tmp_path / f"{number}.pt"
        torch.save(source.state_dict(), path)
        target = load_reference_checkpoint(path, build())
        assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_mismatch_lists_the_names_and_changes_nothing(golden, formula_weights):
    explainer = Explainer()
    before = {name: value.clone() for name, value in explainer.state_dict().items()}
    state = formula_weights(golden["xml_explainer_keys"])
    state["extra"] = state.pop("bn.num_batches_tracked")
    state["tr_conv0.weight"] = torch.zeros(128, 64, 2, 2)
    with pytest.raises(ValueError) as error:
        load_reference_state(explainer, state)
    message = str(error.value)
    assert "1 missing: bn.num_batches_tracked" in message
    assert "1 unexpected: extra" in message
    assert "upsample.0.weight (expected (128, 128, 2, 2), got (128, 64, 2, 2), in the file tr_conv0.weight)" in message
    assert all(torch.equal(value, before[name]) for name, value in explainer.state_dict().items())


def test_other_modules_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="module: expected a SoftCAM, an Explainer or a classifier, got Linear"):
        load_reference_state(nn.Linear(2, 2), {})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_reference_checkpoint(tmp_path / "nothing.pt", Explainer())
    torch.save({"explainer": Explainer().state_dict()}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="missing classifier"):
        load_reference_checkpoint(tmp_path / "half.pt", explainer_classifier("compact", 2))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got list"):
        load_reference_checkpoint(tmp_path / "list.pt", Explainer())
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not a checkpoint")
        with pytest.raises(ValueError, match=rf"{name}: damaged, cut short, or neither a PyTorch"):
            load_reference_checkpoint(tmp_path / name, Explainer())


@pytest.mark.parametrize("reference, architecture", [("resnet18",) * 2, ("vgg", "vgg-gated")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_xml_file_gives_the_reference_outputs(
    golden, image, formula_weights, tmp_path, reference, architecture, prefix
):
    expected = golden[f"xml_{reference}_out"]
    parts = {
        "classifier": formula_weights(golden[f"xml_{reference}_keys"], expected["gain"]),
        "explainer": formula_weights(golden["xml_explainer_keys"]),
    }
    states = {part: {prefix + name: value for name, value in state.items()} for part, state in parts.items()}
    best = {"epoch": 3, "best_loss": np.float64(0.5), "best_acc": torch.tensor(0.75), "optimiser": {"state": {}}}
    torch.save({**states, **best}, tmp_path / "best.pt")
    model = load_reference_checkpoint(tmp_path / "best.pt")
    assert isinstance(model, ExplainerClassifier)
    x = image(2, 224, 224)
    with torch.no_grad():
        assert_summary(model.explainer(x), golden["xml_explainer_out"])
        logits = model.classifier(x, image(2, 224, 224, c=1, phase=0.4))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", ["explainer", "classifier"])
def test_one_part_alone(golden, formula_weights, tmp_path, part):
    state = formula_weights(golden[{"explainer": "xml_explainer_keys", "classifier": "xml_vgg_keys"}[part]])
    torch.save({part: state, "epoch": 1}, tmp_path / "wrapped.pt")
    torch.save(state, tmp_path / "plain.pt")
    for name in ("wrapped.pt", "plain.pt"):
        model = load_reference_checkpoint(tmp_path / name)
        assert isinstance(model, Explainer) == (part == "explainer")
        assert sum(v.double().sum() for v in model.state_dict().values()) == pytest.approx(
            sum(v.double().sum() for v in state.values())
        )


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    source = blackbox("compact", 3, width=4, in_channels=1)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pt")
    model = load_reference_checkpoint(tmp_path / "model.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


TOLD = [
    name
    for name in models.list_models(module=models)
    if not name.startswith(("regnet", "googlenet", "inception", "maxvit"))  # RegNet cannot be built on the meta device
]


@pytest.mark.parametrize("architecture", TOLD)
def test_every_torchvision_architecture_is_told_from_its_tensors(architecture):
    """By names and shapes alone, for another number of classes, in the order of safetensors."""
    with torch.device("meta"):
        state = models.get_model(architecture, weights=None, num_classes=7).state_dict()
    shapes = {name: tuple(state[name].shape) for name in sorted(state)}
    stem = next(shape for name, shape in shapes.items() if re.fullmatch(rf"{STEM}\.weight", name))
    head = sorted(name for name in shapes if re.fullmatch(rf"{HEAD}\.weight", name))[-1]
    assert shapes[head][0] == 7
    assert _architecture(shapes, stem, head, "file") == architecture


@pytest.mark.parametrize(
    "architecture, suffix",
    [
        *(("resnet18", ".pth"), ("densenet121", ".pth"), ("efficientnet_b0", ".pth"), ("mnasnet0_5", ".pth")),
        *(("mobilenet_v2", ".safetensors"), ("regnet_y_400mf", ".safetensors")),
    ],
)
def test_a_torchvision_file_becomes_a_softcam_of_the_same_logits(tmp_path, architecture, suffix):
    source, path, x = (
        models.get_model(architecture, weights=None, num_classes=5),
        tmp_path / f"a{suffix}",
        torch.rand(2, 3, 64, 64),
    )
    source(x)  # moves the batch statistics
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    with torch.no_grad():
        expected = source.eval()(x)
        torch.testing.assert_close(load_reference_checkpoint(path)(x), expected)
        converted = to_softcam(load_reference_checkpoint(path))
        torch.testing.assert_close(converted(x).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    maps = explain("evidence", converted, x, torch.tensor([0, 4]))
    assert maps.shape == (2, 64, 64)


def test_every_kind_of_file_is_explained(golden, formula_weights, tmp_path):
    x, targets = torch.rand(1, 3, 64, 64), torch.tensor([1])
    parts = {
        "classifier": formula_weights(golden["xml_vgg_keys"]),
        "explainer": formula_weights(golden["xml_explainer_keys"]),
    }
    cam = softcam("compact", 2, width=4)
    for name, state, methods in (
        ("xml", parts, ("explainer", "gradcam", "saliency")),
        ("softcam", cam.state_dict(), ("evidence", "gradcam", "saliency")),
        ("blackbox", models.resnet18(num_classes=2).state_dict(), ("gradcam", "guided_backprop")),
    ):
        torch.save(state, tmp_path / f"{name}.pt")
        model = load_reference_checkpoint(tmp_path / f"{name}.pt")
        for method in methods:
            assert explain(method, model, x, targets).isfinite().all()


def test_what_cannot_be_told_is_asked_for(tmp_path):
    source = models.resnet18(num_classes=2)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"num_classes: expected the 2 of .*model\.pt, got 3"):
        load_reference_checkpoint(tmp_path / "model.pt", num_classes=3)
    with pytest.raises(ValueError, match=r"architecture: expected one of resnet18, .* torchvision's, got 'resnet19'"):
        load_reference_checkpoint(tmp_path / "model.pt", architecture="resnet19")
    with pytest.raises(ValueError, match=r"does not fit ResNet; \d+ missing: layer1.2.conv1.weight \(expected \(64,"):
        load_reference_checkpoint(tmp_path / "model.pt", architecture="resnet34")
    with pytest.raises(ValueError, match=r"model: expected either .* got ResNet with architecture='resnet18'"):
        load_reference_checkpoint(tmp_path / "model.pt", source, architecture="resnet18")
    del source.layer4[1]
    torch.save(source.state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: no known architecture has its 110 tensors; give architecture or"):
        load_reference_checkpoint(tmp_path / "other.pt")
    assert load_reference_checkpoint(tmp_path / "other.pt", source) is source
    torch.save({"epoch": 3, "weight": torch.zeros(2)}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"expected a network's tensors .* got 1 tensors among epoch, weight"):
        load_reference_checkpoint(tmp_path / "none.pt")


def test_two_names_of_one_tensor(golden, formula_weights):
    state = formula_weights(golden["xml_explainer_keys"])
    with pytest.raises(ValueError, match=r"state_dict: conv_1x1.bias and project.bias are both project.bias"):
        load_reference_state(Explainer(), {**state, "project.bias": torch.zeros(1)})


class Trap:
    opened = False

    def __reduce__(self):
        return setattr, (Trap, "opened", True)


@pytest.mark.parametrize("payload", [Trap(), nn.Linear(2, 2)], ids=["code", "model"])
def test_a_pickled_model_is_refused_unopened(tmp_path, payload):
    path = tmp_path / "model.pt"
    torch.save(payload, path)
    with pytest.raises(
        ValueError, match=r"model\.pt: holds pickled objects \(.*\).* in a sandbox .*state_dict\(\) alone"
    ):
        load_reference_checkpoint(path, Explainer())
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(ValueError, match=r"raw\.pt: .*in a sandbox"):
        load_reference_checkpoint(tmp_path / "raw.pt", Explainer())
    assert not Trap.opened
