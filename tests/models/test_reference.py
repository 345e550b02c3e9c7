import pickle
from functools import partial

import numpy as np
import pytest
import torch
from golden_values import MODELS, OF_MODELS, formula_weights
from torch import nn
from torchvision.models import resnet18

from lib import models
from lib.models import load_reference_checkpoint, load_reference_state
from lib.models.reference import fitting


def assert_same(model: nn.Module, state: dict) -> None:
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_the_reference_code_gives_its_output(name, tmp_path):
    MODELS[name](torch.device("cpu"), tmp_path)


def test_a_mismatch_lists_the_names_and_changes_nothing():
    explainer, state = models.Explainer(), formula_weights(OF_MODELS["xml_explainer_keys"])
    before = {name: value.clone() for name, value in explainer.state_dict().items()}
    state |= {"extra": state.pop("bn.bias"), "bn.weight": 3.0, "tr_conv0.weight": torch.zeros(128, 64, 2, 2)}
    with pytest.raises(ValueError) as error:
        load_reference_state(explainer, state, "file.pt")
    message = str(error.value)
    assert message.startswith('file.pt: does not fit Explainer: Missing key(s) in state_dict: "bn.bias"')
    assert 'Unexpected key(s) in state_dict: "extra"' in message and "\n" not in message
    assert "size mismatch for upsample.0.weight: copying a param with shape torch.Size([128, 64, 2, 2])" in message
    assert 'parameter named "bn.weight", expected torch.Tensor' in message
    assert_same(explainer, before)


def test_other_modules_and_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match="does not fit Linear: Missing"):
        load_reference_state(nn.Linear(2, 2), {})
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
        load_reference_checkpoint(tmp_path / "nothing.pt", models.Explainer())
    torch.save({"explainer": models.Explainer().state_dict()}, tmp_path / "half.pt")
    with pytest.raises(ValueError, match="expected state dicts 'classifier' and 'explainer', got explainer"):
        load_reference_checkpoint(tmp_path / "half.pt", models.explainer_classifier("compact", 2))
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="expected a dictionary of tensors, got list"):
        load_reference_checkpoint(tmp_path / "list.pt", models.Explainer())


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("reference, architecture", [("resnet18",) * 2, ("vgg", "vgg-gated")])
def test_a_file_of_the_explainer_classifier_is_read_whole_or_in_part(tmp_path, reference, architecture, prefix):
    keys = {"classifier": OF_MODELS[f"xml_{reference}_keys"], "explainer": OF_MODELS["xml_explainer_keys"]}
    states = {part: formula_weights(shapes) for part, shapes in keys.items()}
    named = {part: {prefix + name: value for name, value in state.items()} for part, state in states.items()}
    best = {"epoch": np.int64(3), "loss": np.float64(0.5), "score": np.float32(0.2), "best_acc": torch.tensor(0.75)}
    path, before = tmp_path / "best.pt", torch.get_rng_state()
    torch.save({**named, **best, "optimiser": {"state": {}}}, path)
    model = load_reference_checkpoint(path)
    assert isinstance(model, models.ExplainerClassifier) and not model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(load_reference_checkpoint(path, models.explainer_classifier(architecture, 2)), model.state_dict())
    for part, build in (("explainer", models.Explainer), ("classifier", partial(models.blackbox, architecture, 2))):
        expected = load_reference_state(build(), states[part]).state_dict()
        assert_same(getattr(model, part), expected)
        assert_same(load_reference_checkpoint(path, build()), expected)
        for alone in ({part: named[part], "epoch": 1}, states[part]):
            torch.save(alone, tmp_path / "part.pt")
            loaded = load_reference_checkpoint(tmp_path / "part.pt")
            assert type(loaded) is type(build())
            assert_same(loaded, expected)


@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes(tmp_path, wrapper, prefix):
    source = models.blackbox("compact", 3, width=4, in_channels=1)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "model.pt")
    assert_same(load_reference_checkpoint(tmp_path / "model.pt"), source.state_dict())


@pytest.mark.parametrize("architecture", ["resnext50_32x4d", "vgg11", "densenet169", "efficientnet_v2_s", "compact"])
@pytest.mark.parametrize("make", [models.blackbox, models.softcam])
def test_an_architecture_is_told_from_its_tensors(architecture, make):
    with torch.device("meta"):
        source = make(architecture, 7, in_channels=2)
        state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    found = fitting(state, "file").state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in source.state_dict().items()}


def test_what_cannot_be_told_is_asked_for(tmp_path):
    source, path = resnet18(num_classes=2), tmp_path / "other.pt"
    del source.layer4[1]
    torch.save(source.state_dict(), path)
    with pytest.raises(ValueError, match=r"other\.pt: no known architecture has its 110 tensors, .*; give model"):
        load_reference_checkpoint(path)
    assert load_reference_checkpoint(path, source) is source
    torch.save({"epoch": 3, "weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"other\.pt: no known .* its 2 tensors, \['epoch', 'weight'\]"):
        load_reference_checkpoint(path)


class Trap:
    opened = False

    def __reduce__(self):
        return setattr, (Trap, "opened", True)


@pytest.mark.parametrize("payload", [Trap(), nn.Linear(2, 2)], ids=["code", "model"])
def test_a_pickled_model_is_refused_unopened(tmp_path, payload):
    path = tmp_path / "model.pt"
    torch.save(payload, path)
    said = r"model\.pt: holds pickled objects \(.*\).* in a sandbox .*state_dict\(\) alone"
    with pytest.raises(ValueError, match=said):
        load_reference_checkpoint(path, models.Explainer())
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(ValueError, match=r"raw\.pt: .*in a sandbox"):
        load_reference_checkpoint(tmp_path / "raw.pt", models.Explainer())
    assert not Trap.opened
