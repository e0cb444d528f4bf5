"""`python -m experiments.synthesize`: the same as `easi3r synthesize`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("synthesize")
