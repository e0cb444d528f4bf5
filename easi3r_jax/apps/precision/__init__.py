"""`experiments.precision`: what each policy costs in accuracy."""
