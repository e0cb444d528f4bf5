"""Evaluation against ground truth: metrics, and the data sets on which they are published."""
