"""`python -m experiments.export`: the same as `easi3r export`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("export")
