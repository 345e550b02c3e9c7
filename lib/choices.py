"""What a recipe's parameters can be, and which of them concern what."""

from typing import Literal

PHASES = {"explainer_classifier": ("classifier", "explainer", "joint")}  # all other methods have one phase
USUAL_METHODS = {
    "blackbox": (
        "tte_cam", "gradcam", "smooth_gradcam", "gradcam_pp", "layercam", "scorecam", "saliency", "input_x_gradient",
        "integrated_gradients", "smoothgrad", "deconvolution", "guided_backprop", "guided_gradcam", "lrp", "occlusion",
        "random", "centre_gaussian", "edge_map",
    ),
    "softcam": ("evidence", "evidence_difference", "random"),
    "explainer_classifier": ("explainer", "integrated_gradients", "guided_backprop", "random"),
}  # fmt: skip
Optimizer = Literal["sgd", "adam", "adamw", "adadelta"]
Schedule = Literal["none", "plateau", "cosine", "clipped_cosine", "onecycle", "multistep", "exponential"]
Sampling = Literal["instance", "class_balanced", "progressive", "progressive_reversed"]
Checkpoint = Literal["loss", "accuracy", "auc", "sensitivity", "specificity", "precision", "kappa"]
NAMED = "a letter or digit, then letters, digits, spaces or one of _.,()[]'+=@&!-, no space or full stop at the end"
Measure = Literal["localisation", "removal", "faithfulness", "properties"]  # removal is a part of faithfulness
NAME = r"^[^\W_](?:[\w .,()\[\]'+=@&!-]*[\w()\[\]'+=@&!-])?$"  # a folder's, on every system
PHASED = {"alpha": [1.0, 0.5, 0.6], "lr_explainer": [0.0, 0.02, 0.03], "optimizer": ["adamw", "sgd", "sgd"]}
EXPLAINED = {  # parameters that do not concern a black box
    "output_stride", "explainer_channels", "init_bias", "l1", "l2", "hybrid", "beta", "gamma", "evolution_count",
}  # fmt: skip
NOT_TRAINED = {  # parameters that the weights do not depend on: where they are kept, on what and how they are evaluated
    "name", "runs_dir", "twin", "weights_from", "sweep", "device", "num_workers", "split", "test_dataset",
    "explain_methods", "explain_count", "measure", "ig_steps", "topk", "patch", "faithfulness_count", "aopc_tile",
    "aopc_steps", "aopc_grid", "perturbation", "deletion_steps", "deletion_fill", "sanity_count", "resamples",
    "cell_timeout",
}  # fmt: skip
