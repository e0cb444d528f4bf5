"""Rigid motions, cameras and registration: array code."""
