"""Data sets for evaluation: sequences with ground truth, by the published protocols, read where they lie.

    test_set = find_test_set("davis2016")
    for sequence in test_set.find(pathlib.Path("data/davis")):
        frames = load_frames(sequence.images)
        moving = sequence.truth.masks(0)

    sequence     what every data set is to an evaluation
    registry     the data sets
    davis, tum, sintel, scannet, adt, iphone, bonn, kitti, nyu, custom      a layout each
    common, stamped      what they share
    published    the papers' numbers

Finding checks that files are there and that their numbers agree, and reads all poses; images, masks and depth are read
when they are asked for. Layouts, protocols and what is uncertain about them: docs/datasets.md. All arrays are NumPy's.
"""

from easi3r_jax.evaluation.datasets.registry import TEST_SETS, find_test_set
from easi3r_jax.evaluation.datasets.sequence import Published, TestSequence, TestSet, Trajectory, Truth

__all__ = ["TEST_SETS", "Published", "TestSequence", "TestSet", "Trajectory", "Truth", "find_test_set"]
