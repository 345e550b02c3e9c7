"""Parameters of models that train in about a second."""

TINY = {"dataset": "shapes", "limit": {"train": 24, "val": 8, "test": 12}, "width": 8, "batch_size": 8, "epochs": 2,
        "explain_count": 12, "faithfulness_count": 4, "aopc_steps": 6, "deletion_steps": 4, "resamples": 50,
        "ig_steps": 4, "sanity_count": 0, "evolution_count": 2}  # fmt: skip
PHASES = {"method": "explainer_classifier", "explainer_channels": [4, 4, 4], "epochs": [1, 1, 1],
          "lr": [0.003, 0.0, 0.01], "lr_explainer": [0.0, 0.02, 0.01], "alpha": [1.0, 0.25, 0.9],
          "optimizer": ["adamw", "sgd", "sgd"]}  # fmt: skip
