"""Every data set end to end: files in its layout, the program, the embedded network, metrics in the table.

The content of the files is rendered, so the expected metrics are known without any file: those of the same frames and
the same ground truth, by the data set's protocol. A reader that rotates an axis, confuses a unit, a time, an inverse or
a colour, or reads another frame, gives different ones. Depth's alignment hides a wrong unit from AbsRel but not from
RMSE, and every copy has pixels on both sides of its data set's limit.

All clips have one shape, so that the network compiles once, and each is reconstructed once.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from easi3r_jax.apps.evaluate import main as program
from easi3r_jax.apps.evaluate import records
from easi3r_jax.apps.evaluate.sequence_metrics import Prediction, evaluate_sequence
from easi3r_jax.core.config import FrameConfig
from easi3r_jax.core.types import Frames
from easi3r_jax.evaluation.datasets import (
    TEST_SETS,
    TestSequence,
    TestSet,
    Trajectory,
    Truth,
    bonn,
    davis,
    kitti,
    sintel,
    tum,
)
from easi3r_jax.inference import pipeline
from easi3r_jax.io.sequences import CLIPS
from easi3r_jax.io.video import frame_geometry, resize_image
from tests.evaluation.datasets import layouts
from tests.evaluation.datasets.layouts import Film, among_damaged

T, SIZE = 3, (72, 100)  # resized to 69 x 96, of which the network sees 64 x 96
QUICK = ("--iterations=3", "--graph=complete", "--kmeans_restarts=1")
METRES, DEGREES = ("ate", "rpe_translation"), "rpe_rotation_deg"

#: Name of every sequence that must be found -> what must be seen there.
Shown = dict[str, Film]
Films = tuple[Film, Film]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layouts of a data set on disk.

    Attributes:
      name: of the data set.
      write: (folder, two films) -> what must be found there.
      jpeg: frames are JPEG files.
      depth_units: per metre, where depth is kept in whole ones: the films' is what these can say.
      has_intrinsics: whether they are known.
      digits: of poses, after the point. An entry is off by e = 10^-digits / 2, so a camera's place by less than 2 e
        metres and a rotation by less than 3 e radians; a figure by no more than ten times as much.
    """

    name: str
    write: Callable[[pathlib.Path, Films], Shown]
    jpeg: bool = False
    depth_units: int | None = None
    has_intrinsics: bool = False
    digits: int = 9


def alternating(names, films: Films) -> Shown:
    return {name: films[number % 2] for number, name in enumerate(names)}


def each(write: Callable[[pathlib.Path, Film], None], names, *, around: Callable[[Film], Film] = lambda film: film):
    """A folder for each sequence; `around` puts what must not be read around its frames."""

    def write_all(root: pathlib.Path, films: Films) -> Shown:
        shown = alternating(names, films)
        for name, film in shown.items():
            write(root / name, around(film))
        return shown

    return write_all


def write_davis(root: pathlib.Path, films: Films, *, found: tuple[str, ...]) -> Shown:
    shown = alternating("abcd", films)
    layouts.write_davis(root / "DAVIS", shown, val=("c", "d"))
    return {name: shown[name] for name in found}


def write_davis_of_2016(root: pathlib.Path, films: Films) -> Shown:
    """Full resolution, the benchmark's own sequences, black and white: nothing is void."""
    shown = alternating(
        davis.VAL_2016, tuple(dataclasses.replace(f, objects=f.objects * (f.objects < 255)) for f in films)
    )
    for name, film in shown.items():
        for frame in range(T):
            film.save_frame(root / f"JPEGImages/Full-Resolution/{name}/{frame:05}.jpg", frame)
            path = root / f"Annotations/Full-Resolution/{name}/{frame:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(film.objects[frame] > 0, np.uint8(255), np.uint8(0))).save(path)
    return shown


def write_sintel(root: pathlib.Path, films: Films) -> Shown:
    shown = alternating(sintel.SEQUENCES, films)
    layouts.write_sintel(root / "training", shown)
    return {
        name: film if name in sintel.WITH_POSES else dataclasses.replace(film, world_from_cam=None)
        for name, film in shown.items()
    }


def write_scannet_as_tum(root: pathlib.Path, film: Film) -> None:
    layouts.write_scannet_prepared(root, film)
    (root / "pose_90.txt").write_text(layouts.tum_lines(np.arange(T) / 10, film.world_from_cam))


def write_kitti(root: pathlib.Path, films: Films) -> Shown:
    shown = alternating(kitti.DRIVES, films)
    layouts.write_kitti(root, {name: among_damaged(film, (2, 3, 4), 7) for name, film in shown.items()})
    return shown


def write_kitti_prepared(root: pathlib.Path, films: Films) -> Shown:
    shown = alternating([f"{drive}_02" for drive in kitti.DRIVES], films)
    layouts.write_kitti_prepared(root, {name.removesuffix("_02"): film for name, film in shown.items()})
    return shown


def write_nyu(root: pathlib.Path, films: Films) -> Shown:
    layouts.write_nyu(root, among_damaged(films[0], (1, 2, 4), 6), test=(2, 3, 5))
    return {"test": films[0]}


def write_nyu_extracted(root: pathlib.Path, films: Films, *, arrays: bool) -> Shown:
    film = films[0]
    for frame in range(T):
        film.save_frame(root / f"nyu_images/{frame:04}.png", frame)
        if arrays:
            film.save_array(root / f"nyu_depths/{frame:04}.npy", frame, film.depth[frame])
        else:
            film.save_depth16(root / f"nyu_depths/{frame:04}.png", frame, 1000)
    return {"test": film}


def write_nyu_by_scenes(root: pathlib.Path, films: Films) -> Shown:
    film = films[0]
    for frame, scene in enumerate(("bath_1", "bath_1", "office_7")):
        film.save_frame(root / f"test/{scene}/rgb_{frame:05}.jpg", frame)
        film.save_depth16(root / f"test/{scene}/sync_depth_{frame:05}.png", frame, 1000)
    return {"test": film}


def write_custom(root: pathlib.Path, films: Films) -> Shown:
    shown = alternating(("walk", "run"), films)
    for name, film in shown.items():
        layouts.write_clip(
            root / name,
            film,
            masks=(film.objects > 0) & (film.objects < 255),
            depth=film.depth.astype(np.float32),
            world_from_cam=film.world_from_cam,
            intrinsics=film.intrinsics,
        )
    return shown


every_third = partial(among_damaged, places=(0, 3, 6), frames=9)
SCENES = ("scene0707_00", "scene0708_00")
ADT = ("Apartment_seq131", "Apartment_seq132")

LAYOUTS = {
    "davis": Layout("davis", partial(write_davis, found=("a", "b", "c", "d")), jpeg=True),
    "davis2017": Layout("davis2017", partial(write_davis, found=("c", "d")), jpeg=True),
    "davis2016": Layout("davis2016", partial(write_davis, found=("d",)), jpeg=True),
    "davis2016 black and white": Layout("davis2016", write_davis_of_2016, jpeg=True),
    "tum": Layout("tum", each(layouts.write_tum, tum.SEQUENCES, around=every_third)),
    "tum prepared": Layout("tum", each(layouts.write_tum_prepared, tum.SEQUENCES)),
    "sintel": Layout("sintel", write_sintel, has_intrinsics=True),
    "scannet": Layout("scannet", each(layouts.write_scannet, SCENES, around=every_third), jpeg=True, digits=6),
    "scannet prepared": Layout("scannet", each(layouts.write_scannet_prepared, SCENES), jpeg=True),
    "scannet prepared as TUM": Layout("scannet", each(write_scannet_as_tum, SCENES), jpeg=True),
    "adt": Layout("adt", each(layouts.write_adt, ADT)),
    "adt prepared": Layout("adt", each(layouts.write_adt_prepared, ADT), jpeg=True),
    "iphone": Layout("iphone", each(layouts.write_iphone, ("apple", "block")), has_intrinsics=True),
    "bonn": Layout(
        "bonn",
        each(layouts.write_bonn, bonn.SEQUENCES, around=partial(among_damaged, places=(30, 31, 32), frames=33)),
        depth_units=5000,
    ),
    "bonn prepared": Layout("bonn", each(layouts.write_bonn_prepared, bonn.SEQUENCES), depth_units=5000),
    "kitti": Layout("kitti", write_kitti, depth_units=256),
    "kitti prepared": Layout("kitti", write_kitti_prepared, depth_units=256),
    "nyu": Layout("nyu", write_nyu),
    "nyu extracted": Layout("nyu", partial(write_nyu_extracted, arrays=True)),
    "nyu extracted to images": Layout("nyu", partial(write_nyu_extracted, arrays=False), depth_units=1000),
    "nyu by scenes": Layout("nyu", write_nyu_by_scenes, jpeg=True, depth_units=1000),
    "custom": Layout("custom", write_custom, has_intrinsics=True),
}


@pytest.fixture(scope="module")
def films() -> Films:
    """Two parts of the bundled clip, larger, with a corner that does not count and one of unknown depth.

    Of the second, the middle of every frame: its camera differs.
    """
    with np.load(CLIPS / "demo" / "ground_truth.npz") as file:
        truth = {name: file[name] for name in ("depth", "masks", "instance", "world_from_cam", "intrinsics")}
    paths = sorted((CLIPS / "demo" / "frames").iterdir())
    found = []
    for start, top, left, height, width in ((0, 0, 0, 64, 96), (8, 8, 12, 48, 72)):
        window = (left, top, left + width, top + height)
        chosen = list(range(start, start + 2 * T, 2))
        images = [Image.open(paths[t]).crop(window).resize(SIZE[::-1], Image.Resampling.NEAREST) for t in chosen]
        rgb = np.stack([np.asarray(image) for image in images])
        rows, columns = (
            first + np.arange(new) * old // new
            for first, new, old in zip((top, left), SIZE, (height, width), strict=True)
        )
        depth, moving, instance = (
            truth[name][chosen][:, rows[:, None], columns] for name in ("depth", "masks", "instance")
        )
        depth = depth.astype(np.float64)
        objects = np.where(moving, 1 + (instance > 5), 0).astype(np.uint8)
        objects[:, :9, -12:] = 255
        depth[:, -8:, :11] = 0
        poses = truth["world_from_cam"][chosen].astype(np.float64)
        poses[:, :3, :3] = Rotation.from_matrix(poses[:, :3, :3]).as_matrix()  # rigid in double precision, too
        scale = np.array([[SIZE[1] / width], [SIZE[0] / height], [1]])
        intrinsics = scale * (truth["intrinsics"][start] - [[0, 0, left], [0, 0, top], [0, 0, 0]])
        found.append(Film(rgb, depth, objects, poses, intrinsics, np.ones(T, bool)))
    return found[0], found[1]


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[bytes, pipeline.Reconstruction]]:
    """The network's frames -> their reconstruction; the same ones are not reconstructed twice."""
    known: dict[bytes, pipeline.Reconstruction] = {}
    reconstruct = pipeline.reconstruct

    def once(model, frames, *arguments, **options):
        key = frames.rgb.tobytes()
        if key not in known:
            known[key] = reconstruct(model, frames, *arguments, **options)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "reconstruct", once)
        yield known


def of_layout(film: Film, layout: Layout) -> Film:
    """The film in metres, some of it farther than the protocol's limit; its depth as the layout can keep it."""
    options = TEST_SETS[layout.name].depth
    limit = 5.0 if options is None else options.max_depth
    scale = 1.03 * limit / film.depth.max()
    depth, poses = film.depth * scale, film.world_from_cam.copy()
    poses[:, :3, 3] *= scale
    if layout.depth_units is not None:
        depth = np.round(depth * layout.depth_units) / layout.depth_units
    return dataclasses.replace(film, depth=depth, world_from_cam=poses)


def network_frames(film: Film, jpeg: bool) -> Frames:
    """What the network must see."""
    geometry = frame_geometry(SIZE[1], SIZE[0], FrameConfig(size=96, patch_size=8))
    images = [Image.fromarray(rgb) for rgb in film.rgb]
    if jpeg:
        files = [io.BytesIO() for _ in images]
        for image, file in zip(images, files, strict=True):
            image.save(file, "JPEG")
        images = [Image.open(file) for file in files]
    return Frames(
        rgb=np.stack([np.asarray(resize_image(image, geometry)) for image in images]),
        source_index=np.arange(T),
        time=np.arange(T) / 24,
        frame_from_source=geometry.frame_from_source,
        source_size=np.array(SIZE),
    )


def expected_metrics(
    test_set: TestSet, film: Film, layout: Layout, seen: dict[bytes, pipeline.Reconstruction]
) -> dict[str, dict[str, float | None]]:
    """Those of the film itself: no file, no reader."""
    frames = network_frames(film, layout.jpeg)
    clips = [frames.rgb[t : t + 1] for t in range(T)] if test_set.single_frames else [frames.rgb]
    assert {clip.tobytes() for clip in clips} <= set(seen), "the network saw other frames"
    prediction = Prediction.of([seen[clip.tobytes()].scene for clip in clips], frames)
    times = np.arange(float(T))
    truth = Truth(
        masks=lambda t: (film.objects[t] != 0) & (film.objects[t] != 255),
        void=None if layout.name == "custom" else lambda t: film.objects[t] == 255,
        depth=lambda t: film.depth[t].astype(np.float32),
        intrinsics=np.tile(film.intrinsics, (T, 1, 1)) if layout.has_intrinsics else None,
        trajectory=None if film.world_from_cam is None else Trajectory(times, film.world_from_cam),
    )
    return evaluate_sequence(test_set, TestSequence("", (), times, truth, T), prediction)


def tables_of(report: str) -> list[dict[str, str]]:
    """For every table with a row of ours: title of a column -> its cell."""
    found, header = [], []
    for line in report.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "method":
            header = cells
        elif cells[0].startswith("ours"):
            found.append(dict(zip(header, cells, strict=True)))
    return found


def check_tables(report: str, measured: list[dict[str, dict[str, float]]]) -> None:
    """Means over sequences, pixels or frames, as they are defined, to the printed digits."""
    shown: set[str] = set()
    for table in tables_of(report):
        prefix = "davis_" if "J&F" in table else "pooled_"
        for title, task, name, weight in (
            ("AbsRel", "depth", "abs_rel", "pixels"),
            ("RMSE", "depth", "depth_rmse", "pixels"),
            ("ATE", "poses", "ate", None),
            ("RPE rot. (deg)", "poses", DEGREES, None),
            ("distance", "points", "distance", None),
            ("J mean", "masks", f"{prefix}j_mean", "pooled_frames" if prefix == "pooled_" else None),
        ):
            if title in table:
                known = [one[task] for one in measured if task in one]
                mean = np.average([one[name] for one in known], weights=[one[weight] if weight else 1 for one in known])
                assert table["n/N"] == f"{len(known)}/{len(known)}"
                assert float(table[title]) == pytest.approx(mean, abs=0.6e-3), title
                shown.add(task)
    assert shown == {task for one in measured for task in one}


@pytest.fixture
def evaluated(tmp_path, capsys, cache, monkeypatch) -> Callable[..., pathlib.Path]:
    """`evaluated("tum", root)` runs the program in this process, which must succeed; the folder of the run."""
    monkeypatch.setenv("EASI3R_JAX_CACHE", str(cache))

    def run(name: str, root: pathlib.Path) -> pathlib.Path:
        output = tmp_path / "out"
        arguments = ["", f"--dataset={name}", f"--data_root={root}", f"--output={output}", *QUICK]
        code = program.FLAGS.execute(program.main, arguments)
        out, errors = capsys.readouterr()
        assert code == 0 and not errors, out + errors
        return output

    return run


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_metrics_of_files_are_those_of_their_content(layout, films, seen, evaluated, tmp_path):
    shown = layout.write(tmp_path / "data", tuple(of_layout(film, layout) for film in films))
    output = evaluated(layout.name, tmp_path / "data")
    found = {record.sequence: record for record in records.read(output)}
    assert set(found) == set(shown) and all(record.error is None for record in found.values())
    test_set, right = TEST_SETS[layout.name], []
    off = 0.5 * 10**-layout.digits
    for name, film in shown.items():
        right.append(expected_metrics(test_set, film, layout, seen))
        assert set(found[name].metrics) == set(right[-1])
        for task, measured in right[-1].items():
            allowed = {DEGREES: np.degrees(30 * off), **dict.fromkeys(METRES, 20 * off)} if task == "poses" else {}
            for metric, value in measured.items():
                own = found[name].metrics[task][metric]
                assert own == pytest.approx(value, rel=1e-6, abs=allowed.get(metric, 1e-9)), (name, task, metric)
    check_tables((output / "report.md").read_text(), right)
    rows = csv.DictReader((output / "results.csv").read_text().splitlines())
    assert {row["sequence"] for row in rows} == set(shown)


def test_every_data_set_has_its_layouts():
    assert {layout.name for layout in LAYOUTS.values()} == set(TEST_SETS)
