"""Priors that a user gives for a clip: read in the original images' pixels and mapped to the frames."""
