"""Programs of a checkout: `python -m experiments.NAME` is `easi3r NAME`. The code is in `easi3r_jax/apps`."""
