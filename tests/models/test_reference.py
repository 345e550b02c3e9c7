import pickle

import numpy as np
import pytest
import torch
from torch import nn

from lib.models import (
    Explainer,
    blackbox,
    explainer_classifier,
    load_reference_checkpoint,
    load_reference_state,
    softcam,
)


def empty(build, *args, **kwargs) -> nn.Module:
    """A model without initial values, in eval mode: every tensor must come from the file."""
    with torch.device("meta"):
        model = build(*args, **kwargs)
    return model.to_empty(device="cpu").eval()


def summary(values: torch.Tensor) -> dict:
    flat = values.double().flatten()
    samples = flat[torch.from_numpy(np.linspace(0, len(flat) - 1, 17).astype(int))]
    return {
        "shape": list(values.shape),
        "sum": flat.sum().item(),
        "abs_sum": flat.abs().sum().item(),
        "samples": samples.tolist(),
    }


def assert_summary(values: torch.Tensor, expected: dict) -> None:
    got = summary(values)
    assert got["shape"] == expected["shape"]
    assert got["sum"] == pytest.approx(expected["sum"], rel=1e-4, abs=1e-4 * expected["abs_sum"] / 1000)
    assert got["abs_sum"] == pytest.approx(expected["abs_sum"], rel=1e-4)
    scale = max(map(abs, expected["samples"]))
    assert got["samples"] == pytest.approx(expected["samples"], rel=1e-4, abs=1e-4 * scale)


@pytest.mark.parametrize("architecture", ["resnet50", "vgg16", "densenet121"])
def test_softcam_gives_the_reference_output(golden, image, formula_weights, architecture):
    expected = golden[f"softcam_{architecture}_out"]
    state = formula_weights(golden[f"softcam_{architecture}_keys"], expected["gain"])
    model = load_reference_state(empty(softcam, architecture, 2), state)
    with torch.no_grad():
        logits, evidence = model(image(2, 224, 224))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=0)
    assert_summary(evidence, expected["evidence"])


def test_explainer_gives_the_reference_output(golden, image, formula_weights):
    explainer = load_reference_state(empty(Explainer), formula_weights(golden["xml_explainer_keys"]))
    with torch.no_grad():
        assert_summary(explainer(image(2, 224, 224)), golden["xml_explainer_out"])


@pytest.mark.parametrize("reference, architecture", [("resnet18",) * 2, ("resnet50",) * 2, ("vgg", "vgg-gated")])
def test_gated_classifier_gives_the_reference_output(golden, image, formula_weights, reference, architecture):
    expected = golden[f"xml_{reference}_out"]
    state = formula_weights(golden[f"xml_{reference}_keys"], expected["gain"])
    classifier = load_reference_state(empty(blackbox, architecture, 2), state)
    with torch.no_grad():
        logits = classifier(image(2, 224, 224), image(2, 224, 224, c=1, phase=0.4))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-6)


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
    assert "upsample.0.weight (expected (128, 128, 2, 2), got (128, 64, 2, 2))" in message
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
        with pytest.raises(ValueError, match=rf"{name}: damaged, or not plain tensors"):
            load_reference_checkpoint(tmp_path / name, Explainer())


class Trap:
    opened = False

    def __reduce__(self):
        return setattr, (Trap, "opened", True)


@pytest.mark.parametrize("payload", [Trap(), nn.Linear(2, 2)], ids=["code", "model"])
def test_a_pickled_model_is_refused_unopened(tmp_path, payload):
    path = tmp_path / "model.pt"
    torch.save(payload, path)
    with pytest.raises(ValueError, match=r"model\.pt: .*in a sandbox.*state_dict\(\) alone"):
        load_reference_checkpoint(path, Explainer())
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(payload, protocol=2))
    with pytest.raises(ValueError, match=r"raw\.pt: .*in a sandbox"):
        load_reference_checkpoint(tmp_path / "raw.pt", Explainer())
    assert not Trap.opened
