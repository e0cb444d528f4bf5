"""What every other package builds on: pytrees, configuration, errors, geometry, pair graphs, devices."""
