"""`python -m experiments.report`: the same as `easi3r report`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("report")
