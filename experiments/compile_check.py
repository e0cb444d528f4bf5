"""`python -m experiments.compile_check`: the same as `easi3r compile_check`."""

from easi3r_jax.apps.command import run

if __name__ == "__main__":
    run("compile_check")
