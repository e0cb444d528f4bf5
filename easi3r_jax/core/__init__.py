"""What every room stands on: pytrees, configuration, errors, geometry, pair graphs, devices."""
