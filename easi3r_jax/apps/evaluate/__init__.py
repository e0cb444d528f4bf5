"""Evaluation on data sets: the papers' tables, sequence by sequence, by the protocol of each data set."""
