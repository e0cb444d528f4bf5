"""Stage-by-stage comparison with reference arrays; see `parity.main`."""
