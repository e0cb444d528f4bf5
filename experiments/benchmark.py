"""`python -m experiments.benchmark`: the same as `easi3r benchmark`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("benchmark")
