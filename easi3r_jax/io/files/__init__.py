"""Readers for the files of data sets. Their contents are not trusted.

folders    contents of folders
names      order of files, names that mean the same file
text       numbers in text
arrays     .npy, .npz, tables of numbers
images     16-bit images
hdf5       HDF5 and MATLAB 7.3
"""

from easi3r_jax.io.files.arrays import npz_names, npz_shape, read_npy, read_npz, read_npz_frame, read_table, reported
from easi3r_jax.io.files.folders import folders_with, names_in, numbered_frames, require_frames, require_length
from easi3r_jax.io.files.hdf5 import open_hdf5
from easi3r_jax.io.files.images import read_gray16

__all__ = [
    "folders_with",
    "names_in",
    "npz_names",
    "npz_shape",
    "numbered_frames",
    "open_hdf5",
    "read_gray16",
    "read_npy",
    "read_npz",
    "read_npz_frame",
    "read_table",
    "reported",
    "require_frames",
    "require_length",
]
