"""Training on pairs of views.

`batch` defines the pairs, `rendered` renders them, `datasets` reads them from disk. `objective` is the loss,
`optimiser` the update rule, `step` one training step, `validation` the evaluation on held-out pairs. All but `datasets`
are pure functions. The program is `experiments.train`.
"""
