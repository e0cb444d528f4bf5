"""Stage-by-stage comparison with reference arrays; see `experiments.parity.__main__`."""
