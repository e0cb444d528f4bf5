"""Rigid motions, cameras and registration: array code that imports no sibling but itself."""
