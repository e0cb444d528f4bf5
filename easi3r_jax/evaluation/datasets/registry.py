"""The data sets for evaluation."""

from __future__ import annotations

from easi3r_jax.core.errors import ConfigError
from easi3r_jax.evaluation.datasets import (
    adt,
    bonn,
    custom,
    davis,
    iphone,
    kitti,
    nyu,
    published,
    scannet,
    sintel,
    tum,
)
from easi3r_jax.evaluation.datasets.common import finder
from easi3r_jax.evaluation.datasets.sequence import TestSet
from easi3r_jax.evaluation.metrics import MAX_DEPTHS, DepthOptions

_OWN_TERMS = "see its page"
_DAVIS = "https://davischallenge.org"

_ALL = (
    TestSet(
        name="davis2016",
        title="DAVIS 2016",
        tasks=("masks",),
        find=finder("davis2016", davis.read_2016),
        licence=_OWN_TERMS,
        homepage=_DAVIS,
        published=published.davis(0),
    ),
    TestSet(
        name="davis2017",
        title="DAVIS 2017",
        tasks=("masks",),
        find=finder("davis2017", davis.read_2017),
        licence=_OWN_TERMS,
        homepage=_DAVIS,
        published=published.davis(1),
    ),
    TestSet(
        name="davis",
        title="DAVIS (all)",
        tasks=("masks",),
        find=finder("davis", davis.read_all),
        licence=_OWN_TERMS,
        homepage=_DAVIS,
        published=published.davis(2),
    ),
    TestSet(
        name="tum",
        title="TUM-dynamics",
        tasks=("poses",),
        find=finder("tum", tum.read),
        licence="CC BY 4.0",
        homepage="https://cvg.cit.tum.de/data/datasets/rgbd-dataset",
        published=published.tum(),
    ),
    TestSet(
        name="sintel",
        title="MPI Sintel",
        tasks=("poses", "depth"),
        find=finder("sintel", sintel.read),
        licence=_OWN_TERMS,
        homepage="http://sintel.is.tue.mpg.de/depth",
        depth=DepthOptions("scale", max_depth=MAX_DEPTHS["sintel"]),
        published=published.sintel(),
    ),
    TestSet(
        name="scannet",
        title="ScanNet",
        tasks=("poses",),
        find=finder("scannet", scannet.read),
        licence="ScanNet's terms of use, non-commercial",
        homepage="http://www.scan-net.org",
        published=published.scannet(),
    ),
    TestSet(
        name="adt",
        title="Aria Digital Twin",
        tasks=("poses",),
        find=finder("adt", adt.read),
        licence="its own, for research",
        homepage="https://www.projectaria.com/datasets/adt",
        published=published.adt(),
    ),
    TestSet(
        name="iphone",
        title="DyCheck iPhone",
        tasks=("poses", "depth", "points"),
        find=finder("iphone", iphone.read),
        licence=_OWN_TERMS,
        homepage="https://github.com/KAIR-BAIR/dycheck",
        depth=DepthOptions("scale"),
        published=published.iphone(),
    ),
    TestSet(
        name="bonn",
        title="Bonn RGB-D Dynamic",
        tasks=("depth",),
        find=finder("bonn", bonn.read),
        licence=_OWN_TERMS,
        homepage="https://www.ipb.uni-bonn.de/data/rgbd-dynamic-dataset",
        depth=DepthOptions("scale", max_depth=MAX_DEPTHS["bonn"]),
        published=published.bonn(),
    ),
    TestSet(
        name="kitti",
        title="KITTI",
        tasks=("depth",),
        find=finder("kitti", kitti.read),
        licence="CC BY-NC-SA 3.0",
        homepage="https://www.cvlibs.net/datasets/kitti/eval_depth_all.php",
        depth=DepthOptions("scale", max_depth=MAX_DEPTHS["kitti"]),
        published=published.kitti(),
    ),
    TestSet(
        name="nyu",
        title="NYU Depth v2",
        tasks=("depth",),
        find=finder("nyu", nyu.read),
        licence=_OWN_TERMS,
        homepage="https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
        depth=DepthOptions("median", per_frame=True, max_depth=MAX_DEPTHS["nyu"]),
        single_frames=True,
        published=published.nyu(),
    ),
    TestSet(
        name="custom",
        title="Custom sequences",
        tasks=("masks", "poses", "depth", "points"),
        find=finder("custom", custom.read),
        licence="your own",
        homepage="docs/datasets.md",
        depth=DepthOptions("scale"),
    ),
)

#: Data sets by name. A new one is a function from a folder to its sequences, and an entry here.
TEST_SETS: dict[str, TestSet] = {test_set.name: test_set for test_set in _ALL}


def find_test_set(name: str) -> TestSet:
    """The data set with a name.

    Raises:
      ConfigError: the name is unknown; the message lists the known ones.
    """
    if name not in TEST_SETS:
        raise ConfigError(f"Unknown data set {name!r}: choose one of {', '.join(sorted(TEST_SETS))}.")
    return TEST_SETS[name]
