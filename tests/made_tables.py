"""Tables of evaluated runs, made by hand."""

import math

import numpy as np
import pandas as pd

from lib.table import joined

ABOUT = {"dataset": "shapes", "synthetic": True, "architecture": "compact", "variant": "black box", "seed": 0,
         "sweep": "", "parameter": "", "point": math.nan, "permuted": False}  # fmt: skip
SOFTCAM = {"name": "sc", "variant": "SoftCAM dense"}


def rows(method, metric, values, images=None, patients=None, k=0.0, judge="own", resolution="image", split="test"):
    """Rows of a metric: a value per image (a, b, c ... unless named)."""
    images = list(images or ("abcdefghijklmnopqrstuvwxyz"[: len(values)] if len(values) < 27 else range(len(values))))
    fixed = {"method": method, "metric": metric, "judge": judge, "resolution": resolution, "split": split}
    columns = {"image": list(map(str, images)), "patient": list(patients or [""] * len(values)), "k": float(k)}
    return pd.DataFrame({**fixed, **columns, "value": np.array(values, dtype=float)})


def run(*parts, name="bb", **about):
    """(rows, constants) of one run."""
    folder = f"{name}-seed{seed}" if (seed := about.get("seed")) else name
    return pd.concat(parts, ignore_index=True), {"run": folder, "recipe": name, **ABOUT, **about}


def table(*runs):
    """What `lib.table.load` gives of these runs."""
    parts, about = zip(*runs, strict=True)
    return joined(list(parts), list(about))


IN_MODEL = {"black box": "tte_cam", "SoftCAM dense": "evidence", "SoftCAM sparse": "evidence",
            "Explainer hybrid": "explainer", "Explainer unsupervised": "explainer"}  # fmt: skip
SAME = ["gradcam", "lrp", "integrated_gradients", "guided_backprop", "random"]
POST_HOC = [*SAME, "layercam", "scorecam", "smooth_gradcam", "saliency", "input_x_gradient", "deconvolution",
            "guided_gradcam"]  # fmt: skip


def whole(datasets=("shapes", "chest"), seeds=2, count=12):
    """The table of all models on each data set, of `count` images: in-model maps are the best, then LRP, a random map
    the worst; the sparse SoftCAM and the hybrid Explainer are better than their like."""
    return table(*[model(d, v, seed, count) for d in datasets for v in IN_MODEL for seed in range(seeds)])


def model(dataset, variant, seed, count):
    """(rows, constants) of one run of `whole`."""
    made, label = np.random.default_rng([seed, *map(ord, dataset + variant)]), np.arange(count) % 2
    found = {("classification", "label", "own", "image", "test", 0): label}
    found["classification", "correct", "own", "image", "test", 0] = np.where(np.arange(count) < 3, 0.0, 1.0)
    for method in [IN_MODEL[variant], *(POST_HOC if variant == "black box" else SAME)]:
        good = {"random": 0.1, "lrp": 0.5, "tte_cam": 0.4, "evidence": 0.75, "explainer": 0.75}.get(method, 0.4)
        good += 0.1 * (method == IN_MODEL[variant] and variant in ("SoftCAM sparse", "Explainer hybrid"))
        curve = {("perturbation_curve", 0): 1, ("perturbation_curve", 5): 1 - good, ("aopc", 1): good / 2}
        curve |= {("aopc", 5): good, ("deletion_area", 0): 1 - good}
        curve |= {("deletion_curve", 0): 1, ("deletion_curve", 5): 1 - good}
        once = {("topk_precision", 1): good, ("topk_precision", 2): good, ("activation_precision", 0): good}
        by = {("own", "image"): once | curve | {("pompom", 0): 1 - good}, ("own", "evidence"): once}
        by |= {("twin", "image"): curve} if variant != "black box" and method == IN_MODEL[variant] else {}
        of = ("topk_precision", 1), ("activation_precision", 0), ("aopc", 5), ("deletion_area", 0), ("pompom", 0)
        for (judge, resolution), values in by.items():
            for (metric, k), value in values.items():
                for split in ("test", "val") if judge == "own" and (metric, k) in of else ("test",):
                    drawn = (value + 0.05 * made.standard_normal(count)).clip(0, 1)
                    found[method, metric, judge, resolution, split, k] = drawn
        if method == "evidence":
            found[method, "positive_proportion", "own", "evidence", "test", 1] = 0.2 + 0.6 * label
    keys = pd.DataFrame(found.keys(), columns=["method", "metric", "judge", "resolution", "split", "k"])
    rows = keys.astype({"k": float}).loc[np.repeat(keys.index, count)].reset_index(drop=True)
    images = np.tile([f"{dataset}{i}" for i in range(count)], len(keys))
    rows = rows.assign(image=images, patient="", value=np.concatenate([*found.values()]).astype(float))
    rows["image"] = rows["image"].where(rows["split"] == "test", rows["image"] + "v")
    return run(rows, name=f"{dataset}_{variant}", dataset=dataset, variant=variant, seed=seed)
