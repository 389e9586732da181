"""Experiments: trials of models on the same images, their records, and what is concluded from them.

Read in this order: `setup` (what a trial is), `trials` (how it is trained and stored), `comparison` (`vae-edge
compare`), `model_benchmark` and `evaluation` (the table in docs/model.md), `summary` (means and differences).
`baselines` has the other models, `flops` counts what a model costs.
"""
