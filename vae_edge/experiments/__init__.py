"""Experiments: trials of models on the same images, their records, and what is concluded from them.

Read in this order: `setup` (what a trial is), `trials` (how it is trained and stored, means over the seeds),
`comparison` (`vae-edge compare`), `model_benchmark` and `evaluation` (the table in docs/model_tables.md). `baselines`
has the other models, and what a model costs.
"""
