"""What happens to a training when power, disk, cluster, a second process or a diverging loss come in between."""

import re
import shutil
import signal
import subprocess
import sys
import tempfile

import pandas as pd
import pytest
import torch
from own_images import own_images, own_recipe, same_weights, swap_labels
from tiny_recipes import PHASES

from lib import phase as phases
from lib.metrics import classification_metrics
from lib.run import Run
from lib.train import adopt_checkpoint, train

LONG = {**PHASES, "epochs": [3, 1, 2], "checkpoint": "auc", "augment": "flips"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    own_images(folder)
    return folder


@pytest.fixture(scope="module")
def whole(images):
    """A training that nothing interrupted."""
    return train(own_recipe(images, name="whole", **LONG))


@pytest.fixture
def make(images, tmp_path):
    """A recipe whose run lies in a folder of its own."""
    return lambda **changes: own_recipe(images, runs_dir=str(tmp_path / "runs"), **changes)


@pytest.fixture
def recipe(make):
    return make(**LONG)


def cut(recipe, phase, epoch):
    """Trains until a phase begins an epoch, and no further."""

    def fail(self, trainer, module):
        if (module.phase.name, trainer.current_epoch + 1) == (phase, epoch):
            raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases.Recorder, "on_train_epoch_start", fail)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe)


def assert_same(run, other):
    """Weights, history and evolution are the same to the last bit."""
    assert same_weights(run, other, "last", *run.recipe.phase_names, "evolution")
    pd.testing.assert_frame_equal(run.history, other.history, check_exact=True)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3]),
    "emptied": lambda path: path.write_bytes(b""),
    "zeroed": lambda path: path.write_bytes(b"\0" * path.stat().st_size),
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


@pytest.mark.parametrize("at", [("classifier", 1), ("classifier", 2), ("joint", 1)])
def test_an_interrupted_training_goes_on_to_the_same_bits(recipe, whole, at):
    cut(recipe, *at)
    assert not (recipe.run_dir / "best.safetensors").exists()
    assert_same(train(recipe), whole)


def test_rebalancing_goes_on_to_the_same_bits_too_and_scores_are_those_of_the_best_state(make):
    given = {"sampling": "progressive", "class_weights": "dynamic", "criterion": "focal", "l1": 1e-4, "epochs": 3}
    recipe = make(checkpoint="specificity", **given)
    whole = train(recipe.replace(name="whole"))
    cut(recipe, "softcam", 2)
    assert_same(train(recipe), whole)
    scores, best = classification_metrics(*whole.predictions(split="val")), whole.history["val_specificity"][1:]
    assert best.max() == pytest.approx(scores["specificity"])
    assert whole.history["val_auc"][best.idxmax()] == pytest.approx(scores["auc"])


CUT = [  # what is damaged where the training was cut, what is gone, what is said
    (("classifier", 3), "checkpoints/classifier-last.ckpt", None, "{}: damaged"),
    (("classifier", 3), "checkpoints/classifier-best.safetensors", None, "{}: damaged"),
    (("joint", 2), "classifier.safetensors", None, "{}: damaged"),
    (("joint", 2), "classifier.safetensors", "checkpoints/classifier-last.ckpt", "{}: damaged"),
    (("explainer", 1), "history.csv", None, "trained anew: {} is damaged"),
    (("explainer", 1), "evolution.safetensors", None, "trained anew: {} is damaged"),
]


@damages
@pytest.mark.parametrize(("at", "file", "lost", "said"), CUT)
def test_what_is_damaged_is_said_and_made_again(recipe, whole, capsys, at, file, lost, said, damage):
    cut(recipe, *at)
    damage(recipe.run_dir / file)
    if lost:
        (recipe.run_dir / lost).unlink()
    assert_same(train(recipe), whole)
    assert capsys.readouterr().out.count(said.format(recipe.run_dir / file)) == 1


@damages
def test_damaged_weights_of_a_finished_run_are_named_and_made_again(recipe, whole, damage):
    run = train(recipe)
    damage(run.dir / "best.safetensors")
    with pytest.raises(ValueError, match=r"^.+best.safetensors: damaged, cut short, .*\(\d+ bytes\)$"):
        _ = Run.load(run.dir).model
    assert_same(train(recipe), whole)


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_moved_project_goes_on_to_the_same_bits(make, tmp_path, monkeypatch, epoch):
    judged = phases.PhaseModule.judged
    monkeypatch.setattr(phases.PhaseModule, "judged", lambda self: judged(self) * 0)  # the first epoch is the best
    recipe = make(epochs=3)
    whole = train(recipe.replace(name="whole"))
    cut(recipe, "softcam", epoch)
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    run = train(recipe.replace(runs_dir=str(tmp_path / "moved")))
    assert_same(run, Run.load(tmp_path / "moved" / whole.dir.name))
    assert not (tmp_path / "runs").exists()


def test_a_cluster_changes_nothing_and_nothing_is_written_where_temporary_files_are(
    recipe, whole, monkeypatch, tmp_path
):
    (elsewhere := tmp_path / "cwd").mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    foreign = recipe.replace(name="other", seed=5)
    cut(foreign, "classifier", 3)
    shutil.copy(foreign.run_dir / "checkpoints/classifier-last.ckpt", "hpc_ckpt_1.ckpt")
    for key, value in {"JOB_ID": 7, "JOB_NAME": "train", "NTASKS": 3, "PROCID": 1, "LOCALID": 1, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{key}", str(value))
    handlers, requeue = [], getattr(signal, "SIGUSR1", None)  # Windows has none
    original = phases.Recorder.on_train_batch_end

    def recorded(*given):
        handlers.append(requeue and signal.getsignal(requeue))
        original(*given)

    monkeypatch.setattr(phases.Recorder, "on_train_batch_end", recorded)
    assert_same(train(recipe), whole)
    assert set(handlers) == {requeue and signal.SIG_DFL}
    assert [path.name for path in elsewhere.iterdir()] == ["hpc_ckpt_1.ckpt"]


def listing(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*") if path.name != ".lock"}


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"dataset": "nothing"}, FileNotFoundError, "data set 'nothing'"),
        ({"architecture": "resnet5"}, ValueError, "architecture: expected one of"),
        ({"weights": "nowhere.pt"}, FileNotFoundError, "weights: expected the path of a file"),
        ({"device": "gpu"}, RuntimeError, "device: 'gpu' was asked for, but torch sees no GPU"),
        ({"class_weights": [1.0]}, ValueError, "class_weights: expected 2 values"),
        ({"image_size": 30}, ValueError, "sides multiples of 8"),
        ({"limit": {"val": 1}}, ValueError, "checkpoint: 'auc' needs validation images of every class, got none of '"),
    ],
)
def test_nothing_is_deleted_before_all_is_checked(images, monkeypatch, changes, error, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    recipe = own_recipe(images, name="kept", **LONG)
    train(recipe)
    before = listing(recipe.run_dir)
    with pytest.raises(error, match=said):
        train(recipe.replace(**changes))
    assert listing(recipe.run_dir) == before


def test_a_folder_that_is_no_run_is_refused_untouched(recipe, tmp_path):
    recipe.run_dir.mkdir(parents=True)
    for name in ("02_train.ipynb", ".hidden", "train.tsv", "model.safetensors"):
        (recipe.run_dir / name).write_text("mine")
    before = listing(recipe.run_dir)
    for write in (lambda: train(recipe), lambda: adopt_checkpoint(recipe, tmp_path / "any.pt")):
        with pytest.raises(ValueError, match=r"model.safetensors: expected a run or an empty folder, but there is no"):
            write()
    assert listing(recipe.run_dir) == before
    (recipe.run_dir / "model.safetensors").unlink()
    assert (train(recipe.replace(epochs=1)).dir / "best.safetensors").is_file()
    assert (recipe.run_dir / "02_train.ipynb").read_text() == "mine"


def test_what_the_weights_do_not_depend_on_may_change_while_a_training_is_interrupted(recipe, whole, monkeypatch):
    cut(recipe, "joint", 2)
    fitted, fit = [], phases.fit_phase
    monkeypatch.setattr(phases, "fit_phase", lambda *given: fitted.append(given[0].phase.name) or fit(*given))
    run = train(recipe.replace(topk=3, explain_count=5, num_workers=0))
    assert fitted == ["joint"]
    assert_same(run, whole)
    assert Run.load(run.dir).recipe.topk == 3


def test_other_data_start_an_interrupted_training_again(images, recipe, tmp_path, capsys):
    shutil.copytree(images, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    recipe = recipe.replace(dataset=str(tmp_path / "copy/own.yaml"))
    cut(recipe, "joint", 1)
    first = (recipe.run_dir / "classifier.safetensors").stat()
    swap_labels(tmp_path / "copy")
    run = train(recipe)
    assert (run.dir / "classifier.safetensors").stat() != first
    assert "own: trained anew: the training data (images, labels, masks or card) changed" in capsys.readouterr().out


HOLD = """
import sys, time
from lib.recipe import Recipe
from lib.run import Run
recipe = Recipe.load(sys.argv[1])
with Run(recipe.run_dir, recipe).writing():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_has_one_writer_whose_lock_dies_with_it(recipe, tmp_path):
    run = train(recipe.replace(epochs=1, name="locked"))
    batch, before = run.images(2), listing(run.dir)
    maps = {"random": torch.rand(2, 32, 32)}
    torch.save({part: getattr(run.model, part).state_dict() for part in ("classifier", "explainer")}, tmp_path / "a.pt")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, run.dir], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        for write in (
            lambda: train(run.recipe, again=True),
            lambda: train(run.recipe.replace(beta=0.5)),
            lambda: adopt_checkpoint(run.recipe, tmp_path / "a.pt"),
            lambda: run.write_maps(maps, batch),
        ):
            with pytest.raises(ValueError, match="locked: another process writes it; wait, or give the recipe another"):
                write()
        assert listing(run.dir) == before
        assert train(run.recipe).dir == run.dir  # reading is free
    finally:
        holder.kill()
        holder.wait()
    with run.writing():
        run.write_maps(maps, batch)
    assert run.maps.keys() == maps.keys()


@pytest.mark.parametrize("epoch", [0, 1, 2])  # before the first, in the first, in the second
def test_a_loss_that_is_not_finite_stops_the_training_and_the_last_good_state_is_kept(make, monkeypatch, epoch):
    recipe, original = make(epochs=3), phases.PhaseModule.losses

    def losses(self, batch):
        terms, logits = original(self, batch)
        now = (self.current_epoch + 1) * self.training
        return ({**terms, "loss": terms["loss"] / 0} if now == epoch else terms), logits

    monkeypatch.setattr(phases.PhaseModule, "losses", losses)
    kept = recipe.run_dir / "checkpoints/softcam-last.ckpt"
    left = f"last good state is kept in {re.escape(str(kept))}" if epoch == 2 else "phase has no good state yet"
    said = (
        f"own: phase 'softcam', epoch {epoch}, batch 1 of train: expected a finite loss, got loss inf, classification "
    )
    with pytest.raises(FloatingPointError, match=f"{said}.*; the {left}, nothing counts as trained"):
        train(recipe)
    assert not list(recipe.run_dir.glob("[bs]*.safetensors"))  # neither best nor softcam
    assert torch.load(kept, weights_only=True)["epoch"] == 0 if epoch == 2 else not kept.exists()
    monkeypatch.undo()
    assert train(recipe).history["epoch"].tolist() == [0, 1, 2, 3]
