"""`python -m experiments.validate`: the same as `easi3r validate`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("validate")
