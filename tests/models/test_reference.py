import pickle
import re

import numpy as np
import pytest
import torch
from golden_values import CPU, MODELS, OF_MODELS, assert_summary, formula_weights, image
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
from lib.models.reference import HEAD, STEM, told


def parts(classifier: str = "vgg") -> dict:
    """An Explainer-Classifier as the reference saves it."""
    gain = OF_MODELS[f"xml_{classifier}_out"]["gain"]
    return {
        "classifier": formula_weights(OF_MODELS[f"xml_{classifier}_keys"], gain),
        "explainer": formula_weights(OF_MODELS["xml_explainer_keys"]),
    }


def assert_same(model: nn.Module, state: dict) -> None:
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_the_reference_code_gives_its_output(name, tmp_path):
    MODELS[name](CPU, tmp_path)


def test_own_and_torchvision_names_are_read_as_they_are(tmp_path):
    for build in (softcam, blackbox):
        source = build("compact", 3, width=4)
        torch.save(source.state_dict(), tmp_path / "own.pt")
        assert_same(load_reference_checkpoint(tmp_path / "own.pt", build("compact", 3, width=4)), source.state_dict())


def test_a_mismatch_lists_the_names_and_changes_nothing():
    explainer, state = Explainer(), formula_weights(OF_MODELS["xml_explainer_keys"])
    before = {name: value.clone() for name, value in explainer.state_dict().items()}
    state["extra"] = state.pop("bn.num_batches_tracked")
    state["tr_conv0.weight"] = torch.zeros(128, 64, 2, 2)
    with pytest.raises(ValueError) as error:
        load_reference_state(explainer, state)
    message = str(error.value)
    assert message.startswith(
        'state_dict: does not fit Explainer: Missing key(s) in state_dict: "bn.num_batches_tracked"'
    )
    assert 'Unexpected key(s) in state_dict: "extra"' in message
    assert "size mismatch for upsample.0.weight (in the file tr_conv0.weight): copying a param with shape" in message
    assert "[128, 64, 2, 2]" in message and "[128, 128, 2, 2]" in message
    assert_same(explainer, before)


def test_other_modules_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not fit Linear: Missing"):
        load_reference_state(nn.Linear(2, 2), {})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_reference_checkpoint(tmp_path / "nothing.pt", Explainer())
    torch.save({"explainer": Explainer().state_dict()}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="missing classifier"):
        load_reference_checkpoint(tmp_path / "half.pt", explainer_classifier("compact", 2))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got list"):
        load_reference_checkpoint(tmp_path / "list.pt", Explainer())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("reference, architecture", [("resnet18",) * 2, ("vgg", "vgg-gated")])
def test_xml_file_gives_the_reference_outputs_whole_or_in_part(tmp_path, reference, architecture, prefix):
    states, path, x = parts(reference), tmp_path / "best.pt", image(2, 224, 224)
    best = {"epoch": 3, "best_loss": np.float64(0.5), "best_acc": torch.tensor(0.75), "optimiser": {"state": {}}}
    named = {part: {prefix + name: value for name, value in state.items()} for part, state in states.items()}
    torch.save({**named, **best}, path)
    model = load_reference_checkpoint(path)
    assert isinstance(model, ExplainerClassifier) and not model.training
    assert torch.equal(model.explainer.decoder[0][2].weight, states["explainer"]["conv_mod3.conv1.weight"])
    assert torch.equal(model.explainer.upsample[2].bias, states["explainer"]["tr_conv2.bias"])
    with torch.no_grad():
        assert_summary(model.explainer(x), OF_MODELS["xml_explainer_out"])
        logits = model.classifier(x, image(2, 224, 224, c=1, phase=0.4))
    expected = torch.tensor(OF_MODELS[f"xml_{reference}_out"]["logits"])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)
    assert_same(load_reference_checkpoint(path, explainer_classifier(architecture, 2)), model.state_dict())
    for part, given in (("explainer", Explainer()), ("classifier", blackbox(architecture, 2))):
        expected = getattr(model, part).state_dict()
        assert_same(load_reference_checkpoint(path, given), expected)
        for alone in ({part: named[part], "epoch": 1}, states[part]):
            torch.save(alone, tmp_path / "part.pt")
            loaded = load_reference_checkpoint(tmp_path / "part.pt")
            assert type(loaded) is type(given)
            assert_same(loaded, expected)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    source = blackbox("compact", 3, width=4, in_channels=1)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pt")
    assert_same(load_reference_checkpoint(tmp_path / "model.pt"), source.state_dict())


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
    (stem, *_), (*_, head) = ([name for name in shapes if re.fullmatch(pattern, name)] for pattern in (STEM, HEAD))
    assert shapes[head][0] == 7
    assert told(shapes, stem, head, "file") == architecture


@pytest.mark.parametrize(
    "architecture, suffix",
    [
        *(("resnet18", ".pth"), ("densenet121", ".pth"), ("efficientnet_b0", ".pth"), ("mnasnet0_5", ".pth")),
        *(("mobilenet_v2", ".safetensors"), ("regnet_y_400mf", ".safetensors")),
    ],
)
def test_a_torchvision_file_becomes_a_softcam_of_the_same_logits(tmp_path, architecture, suffix):
    source, x = models.get_model(architecture, weights=None, num_classes=5), torch.rand(2, 3, 64, 64)
    path = tmp_path / f"a{suffix}"
    source(x)  # moves the batch statistics
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    with torch.no_grad():
        expected = source.eval()(x)
        loaded = load_reference_checkpoint(path)
        torch.testing.assert_close(loaded(x), expected)
        converted = to_softcam(loaded)
        torch.testing.assert_close(converted(x).logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert explain("evidence", converted, x, torch.tensor([0, 4])).shape == (2, 64, 64)


def test_every_kind_of_file_is_explained(tmp_path):
    x, targets = torch.rand(1, 3, 64, 64), torch.tensor([1])
    for name, state, methods in (
        ("xml", parts(), ("explainer", "gradcam", "saliency")),
        ("softcam", softcam("compact", 2, width=4).state_dict(), ("evidence", "gradcam", "saliency")),
        ("blackbox", models.resnet18(num_classes=2).state_dict(), ("gradcam", "guided_backprop")),
    ):
        torch.save(state, tmp_path / f"{name}.pt")
        before = torch.get_rng_state()
        model = load_reference_checkpoint(tmp_path / f"{name}.pt")
        assert not model.training and torch.equal(torch.get_rng_state(), before)
        for method in methods:
            assert explain(method, model, x, targets).isfinite().all()


def test_what_cannot_be_told_is_asked_for(tmp_path):
    source = models.resnet18(num_classes=2)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"architecture: expected one of resnet18, .*, got 'resnet19'"):
        load_reference_checkpoint(tmp_path / "model.pt", architecture="resnet19")
    with pytest.raises(ValueError, match=r'model\.pt: does not fit ResNet: Missing key.* "layer1\.2\.conv1\.weight"'):
        load_reference_checkpoint(tmp_path / "model.pt", architecture="resnet34")
    with pytest.raises(ValueError, match=r"model: expected none beside the architecture 'resnet18', got ResNet"):
        load_reference_checkpoint(tmp_path / "model.pt", source, architecture="resnet18")
    del source.layer4[1]
    torch.save(source.state_dict(), tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"other\.pt: no known architecture has its 110 tensors .*give architecture or"
    ):
        load_reference_checkpoint(tmp_path / "other.pt")
    assert load_reference_checkpoint(tmp_path / "other.pt", source) is source
    torch.save({"epoch": 3, "weight": torch.zeros(2)}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"expected a network's tensors .* got 2 entries, epoch, weight"):
        load_reference_checkpoint(tmp_path / "none.pt")


def test_two_names_of_one_tensor():
    state = formula_weights(OF_MODELS["xml_explainer_keys"])
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
