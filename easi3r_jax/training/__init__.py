"""Training: pairs of views in, a step down the gradient out.

`batch` is what a step sees, `rendered` where it comes from when no data are at hand, `objective` what is minimised,
`optimiser` how parameters move, `step` the step itself, `validation` what comes of it. All are pure functions;
`experiments/train.py` is the program.
"""
