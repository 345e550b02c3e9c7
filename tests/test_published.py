import pytest
import yaml

from lib.published import PUBLISHED, load_published
from lib.recipe import PROJECT, Recipe

ENTRY = {"dataset": "x", "model": "black box", "method": None, "metric": "accuracy", "setting": {}, "value": 0.9,
         "read_off_figure": False, "source": "Table 1"}  # fmt: skip


def test_published_numbers_belong_to_recipes_of_the_papers():
    found = load_published()
    named = ["dataset", "model", "method", "metric", "setting", "value", "read_off_figure", "source"]
    assert list(found.columns) == named
    recipes = [Recipe.load(path) for path in (PROJECT / "notebooks/recipes/paper").glob("*.yaml")]
    for row in found.itertuples():
        fitting = [r for r in recipes if (r.dataset, r.variant) == (row.dataset, row.model)]
        assert fitting, (row.dataset, row.model)
        assert any(row.method in recipe.methods for recipe in fitting)
        assert "2020" in row.source or "2505.17748" in row.source
        for recipe in fitting if row.metric == "aopc" else []:
            assert (recipe.aopc_tile, recipe.aopc_steps, recipe.perturbation) == tuple(row.setting.values())


def test_end_points_of_the_aopc_curves():
    found = load_published().query("metric == 'aopc'").set_index("method")
    assert found["read_off_figure"].all()
    assert found.loc["explainer"].set_index("model")["value"].to_dict() == {
        "Explainer hybrid": 0.215,
        "Explainer unsupervised": 0.185,
    }
    assert (found.loc["guided_backprop", "value"], found.loc["deconvolution", "value"]) == (0.15, 0.085)


def test_the_file_is_no_data_set_and_no_recipe():
    assert PUBLISHED.parent.parent == PROJECT / "data_manifests"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"value": "high"}, "entry 2: .*value"), ({"source": ""}, "entry 2: .*source"), ({"page": 3}, "entry 2: .*page")],
)
def test_an_entry_that_is_no_number_is_named(tmp_path, change, message):
    path = tmp_path / "numbers.yaml"
    path.write_text(yaml.safe_dump([ENTRY, {**ENTRY, **change}]))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_published(path)
    path.write_text(yaml.safe_dump([ENTRY]))
    assert load_published(path)["value"].tolist() == [0.9]
