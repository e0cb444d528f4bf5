"""`python -m experiments.alignment_study`: the same as `easi3r alignment_study`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("alignment_study")
