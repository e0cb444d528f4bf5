"""Measuring results against ground truth: metrics, and the data sets that they are published on."""
