import shutil

import pytest
from made_tables import SOFTCAM, rows, run, table

from lib.run import Run
from lib.table import at, compared, label, load

CORRECT = rows("classification", "correct", [1, 1, 0, 1])
L1 = {"sweep": "path", "parameter": "l1"}


def names(found, column="recipe"):
    return list(found[column].unique())


def test_runs_of_a_data_set_are_measured_on_the_same_images():
    fewer = rows("classification", "correct", [1, 1], images="ca")
    assert len(table(run(CORRECT), run(fewer, **SOFTCAM))) == 6
    other = rows("classification", "correct", [1, 1, 1, 1], images="abcx")
    with pytest.raises(ValueError, match="bb and sc are measured on different images of shapes: x is only in sc; run"):
        table(run(CORRECT), run(other, **SOFTCAM))
    swept = run(other, **SOFTCAM, **L1, point=0.1)
    assert len(table(run(CORRECT), swept)) == 8  # a point of a sweep is not compared with others


def test_data_sets_and_models_come_in_their_order():
    given = [
        ("x", "black box"),
        ("fundus", "Explainer hybrid"),
        ("digits10", "black box"),
        ("shapes", "SoftCAM sparse"),
        ("shapes", "black box"),
    ]
    found = table(*[run(CORRECT, name=f"r{i}", dataset=d, variant=v) for i, (d, v) in enumerate(given)])
    assert names(found) == ["r4", "r3", "r2", "r1", "r0"]
    assert list(found["dataset"].cat.categories) == ["shapes", "digits10", "fundus", "x"]
    assert names(found[found["recipe"] == "r4"], "image") == list("abcd")  # as they are drawn: intervals depend on it


def test_two_architectures_of_a_data_set_are_two_data_sets():
    both = [run(CORRECT, name=f"{a}_bb", architecture=a) for a in ("resnet18", "resnet50")]
    assert names(table(*both), "dataset") == ["shapes, resnet18", "shapes, resnet50"]
    assert names(table(*both), "variant") == ["black box"]


def test_two_recipes_of_one_variant_are_told_apart():
    cam = rows("gradcam", "gini", [1, 1])
    found = table(run(CORRECT, cam), run(CORRECT, cam, name="other"), run(CORRECT, seed=1))
    assert names(found, "variant") == ["black box (bb)", "black box (other)"]
    assert names(compared(found), "label") == ["Grad-CAM (bb)", "Grad-CAM (other)"]
    swept = table(run(CORRECT), run(CORRECT, name="p-1", **L1, point=1.0), run(CORRECT, name="p-2", **L1, point=2.0))
    assert names(swept, "variant") == ["black box"]


def test_a_map_of_the_model_itself_is_called_by_the_model_and_others_by_their_method():
    assert label("evidence", "SoftCAM dense") == "SoftCAM dense"
    assert label("evidence", "SoftCAM dense (x)") == "SoftCAM dense (x)"
    assert label("classification", "black box") == "black box"
    assert label("gradcam", "black box") == "Grad-CAM"
    assert label("gradcam", "black box (x)") == "Grad-CAM (x)"
    assert label("tte_cam", "black box") == "TTE-CAM"


def test_post_hoc_maps_are_compared_on_the_black_box_and_in_model_ones_on_their_own_models():
    methods = ("gradcam", "tte_cam", "random", "evidence", "integrated_gradients")
    maps = [rows(method, "gini", [1.0, 0.5]) for method in methods]
    permuted = run(CORRECT, maps[0], name="r", permuted=True)
    point = run(CORRECT, maps[0], name="p", **L1, point=1.0)
    found = compared(table(run(CORRECT, *maps[:3]), run(CORRECT, *maps[3:], **SOFTCAM), permuted, point))
    assert names(found, "label") == ["Grad-CAM", "TTE-CAM", "Random", "SoftCAM dense"]
    assert names(found) == ["bb", "sc"]


def test_a_curve_is_read_at_a_step_at_its_end_or_whole():
    curve = [rows("gradcam", "aopc", [k / 10, k], k=k) for k in range(3)]
    longer = [rows("gradcam", "aopc", [k, k], k=k) for k in range(5)]
    judged = rows("gradcam", "aopc", [9, 9], k=2, judge="twin")
    found = table(run(*curve, judged), run(*longer, seed=1))
    assert at(found, "aopc", 1)["value"].tolist() == [0.1, 1, 1, 1]
    assert at(found, "aopc", "last")["value"].tolist() == [0.2, 2, 4, 4]
    assert len(at(found, "aopc", "all")) == 16
    assert at(found, "aopc", "last", "twin")["value"].tolist() == [9, 9]


def test_a_metric_is_read_at_the_resolution_asked_or_at_its_only_one():
    kinds = {"image": [1, 1], "evidence": [0, 0]}
    both = [rows("gradcam", "topk_precision", values, k=1, resolution=name) for name, values in kinds.items()]
    one = (
        rows("evidence", "positive_proportion", [0.5, 0.5], k=1, resolution="evidence"),
        rows("gradcam", "aopc", [0.1]),
    )
    found = table(run(*both, *one))
    for name, values in kinds.items():
        assert at(found, "topk_precision", 1, resolution=name)["value"].tolist() == values
        assert len(at(found, "positive_proportion", 1, resolution=name)) == 2
        assert len(at(found, "aopc", resolution=name)) == 1
    assert at(found, "topk_precision", 1)["resolution"].unique().tolist() == ["image"]


def test_rows_of_choice_are_validation_images_of_a_run_that_is_tested():
    chosen = rows("gradcam", "gini", [1, 1], images="xy", split="val")
    val = rows("gradcam", "gini", [0.5], images="x", split="val")
    found = table(run(CORRECT, chosen), run(val, name="val", dataset="val alone"))
    assert found[found["choice"]]["image"].tolist() == ["x", "y"]
    assert (found["main"] == ~found["choice"]).all()
    assert names(compared(found), "dataset") == ["val alone"]
    assert found.groupby(["dataset", "image"], observed=True)["unit"].nunique().eq(1).all()
    assert found["unit"].nunique() == 4 + 2 + 1


def test_patients_are_units_within_their_data_set():
    cam = rows("gradcam", "gini", [1, 2, 3, 4], patients=["p", "q", "p", ""])
    found = table(run(cam), run(cam, dataset="chest"), run(cam, **SOFTCAM))
    assert found["unit"].tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 3, 4, 3, 5]


def test_a_folder_without_an_evaluated_run_is_said(tmp_path):
    said = r"runs_dir: no evaluated run in .*; make one with notebooks/04_evaluate.ipynb"
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_load_joins_runs_with_their_recipes(evaluated):
    folder = next(iter(evaluated.values())).dir.parent
    found = load(folder)
    assert set(names(found)) == {"bb", "sc", "ec"}
    assert names(load(folder, ["sc"]), "label") == names(load(folder, ["sc"], seeds=1), "label")
    assert names(found, "variant") == ["black box", "SoftCAM sparse", "Explainer hybrid"]
    assert found["synthetic"].all()
    with pytest.raises(ValueError, match="no evaluated run"):
        load(folder, ["none"])


def test_a_table_says_by_which_recipe_it_was_measured(evaluated, tmp_path):
    for one in evaluated.values():
        shutil.copytree(one.dir, tmp_path / one.dir.name)
    own = Run.load(tmp_path / "sc")
    found, own.recipe = own.table, own.recipe.replace(aopc_tile=4)
    with pytest.raises(ValueError, match=r"^sc: table.parquet is of another aopc_tile; run 04_evaluate again$"):
        _ = own.table
    found.attrs.clear()
    found.to_parquet(own.dir / "table.parquet", index=False)
    with pytest.raises(ValueError, match=r"^sc: table.parquet is of another version; run 04_evaluate again$"):
        _ = own.table
    own.write_table(found)
    assert Run.load(own.dir).recipe.aopc_tile == 4  # what 04 was told to change is the folder's from then on
    assert Run.load(own.dir).table.equals(found)
    with pytest.raises(ValueError, match=r"^runs: bb and sc were measured with another aopc_tile; run 04 of both"):
        load(tmp_path)
    assert names(load(tmp_path, ["bb", "ec"])) == ["bb", "ec"]


def test_a_run_whose_twin_learnt_otherwise_is_refused(evaluated, tmp_path):
    for one in evaluated.values():
        shutil.copytree(one.dir, tmp_path / one.dir.name)
    found = Run.load(tmp_path / "bb")
    table, found.recipe = found.table, found.recipe.replace(width=9, batch_size=3)
    found.write_table(table)
    with pytest.raises(ValueError, match=r"^twin: ec and bb differ in width . and 9, batch_size 8 and 3$"):
        load(tmp_path)
    assert names(load(tmp_path, ["ec", "sc"])) == ["sc", "ec"]
