"""Data sets for evaluation: sequences with ground truth, by the published protocols, read from their own layouts.

    test_set = find_test_set("davis2016")
    for sequence in test_set.find(pathlib.Path("data/davis")):
        frames = load_frames(sequence.images)
        moving = sequence.truth.masks(0)

    sequence     the interface of a data set
    registry     the list of data sets
    davis, tum, sintel, scannet, adt, iphone, bonn, kitti, nyu, custom      one reader per layout
    common, stamped      shared by the readers
    published    the papers' results

`find` checks that the files exist and that their counts agree, and reads all poses. Images, masks and depth are read on
demand. Layouts, protocols and what is uncertain about them: docs/datasets.md. All arrays are NumPy's.
"""

from easi3r_jax.evaluation.datasets.registry import TEST_SETS, find_test_set
from easi3r_jax.evaluation.datasets.sequence import Published, TestSequence, TestSet, Trajectory, Truth

__all__ = ["TEST_SETS", "Published", "TestSequence", "TestSet", "Trajectory", "Truth", "find_test_set"]
