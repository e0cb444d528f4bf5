"""Depth and mask PNGs and the summary picture."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from easi3r_jax.export import summary_figure, write_depth, write_masks, write_summary


def read(path, mode=None):
    with Image.open(path) as image:
        return np.asarray(image.convert(mode) if mode else image)


def read_depth(folder):
    scale = float(np.loadtxt(folder / "scale.txt"))
    values = np.stack([read(p) for p in sorted(folder.glob("*.png"))])
    return values, scale


def test_depth_round_trip(scene, tmp_path):
    write_depth(tmp_path / "depth", scene.depth)
    values, scale = read_depth(tmp_path / "depth")
    assert values.dtype == np.uint16
    np.testing.assert_allclose(values * scale, scene.depth, atol=0.5 * scale * 1.01)
    assert scale <= scene.depth.max() / 65000  # the range is used
    assert values.max() < 65535


def test_unknown_depth_is_zero_and_far_depth_saturates(scene, tmp_path):
    depth = scene.depth.copy()
    depth[0, 0, :4] = [np.nan, -1.0, 0.0, np.inf]
    depth[1, 0, 0] = 1e9  # sky
    depth[2, 0, 0] = 1e-9
    write_depth(tmp_path / "depth", depth)
    values, scale = read_depth(tmp_path / "depth")
    assert values[0, 0, :4].tolist() == [0, 0, 0, 0]
    assert values[1, 0, 0] == 65535
    assert values[2, 0, 0] == 1  # known, if only just
    assert scale < 0.0004 * np.median(scene.depth)


def test_depth_previews_show_near_bright(scene, tmp_path):
    write_depth(tmp_path / "depth", scene.depth)
    previews = sorted((tmp_path / "depth" / "preview").glob("*.jpg"))
    assert len(previews) == len(scene.depth)
    brightness = read(previews[0], "L").astype(float)
    mask = scene.dynamic_mask[0]  # nearer than the rest
    assert brightness[mask].mean() > brightness[~mask].mean() + 50


def test_depth_of_nothing(tmp_path):
    write_depth(tmp_path / "depth", np.zeros((1, 4, 5), np.float32))
    assert read_depth(tmp_path / "depth")[0].max() == 0


def test_masks_round_trip(scene, tmp_path):
    write_masks(tmp_path / "masks", scene.dynamic_mask)
    files = sorted((tmp_path / "masks").iterdir())
    assert [f.name for f in files] == ["00000.png", "00001.png", "00002.png"]
    for file, mask in zip(files, scene.dynamic_mask, strict=True):
        np.testing.assert_array_equal(read(file), np.where(mask, 255, 0))


def pictures(figure):
    return [axes for axes in figure.axes if axes.images and not axes.axison]


@pytest.mark.parametrize(("num_frames", "columns"), [(1, 1), (3, 3), (40, 8)])
def test_summary_spreads_frames_over_the_clip(scene, motion, num_frames, columns):
    index = np.arange(num_frames) % 3
    maps = type(motion.temporal)(*(m[index] for m in vars(motion.temporal).values()))
    motion = dataclasses.replace(motion, temporal=maps)
    scene = type(scene)(**{k: v[index] for k, v in vars(scene).items()})
    figure = summary_figure(scene, motion, title="clip", time=np.arange(num_frames) / 10)
    assert len(pictures(figure)) == 9 * columns
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == columns
    assert titles[0].startswith("frame 0\n")
    assert titles[-1].startswith(f"frame {num_frames - 1}\n")


def test_summary_without_motion_has_three_rows(scene, time):
    assert len(pictures(summary_figure(scene, None, title="clip", time=time))) == 3 * len(time)


def test_the_summary_shows_flow_to_the_next_frame(scene, time):
    count, height, width = scene.depth.shape
    edges = np.array([(i, j) for i in range(count) for j in range(count) if i != j])
    flow = np.zeros((len(edges), height, width, 2), np.float32)
    onwards = np.isin(edges @ [10, 1], [1, 12, 21])  # from 0 to 1, from 1 to 2, and from the last frame back
    flow[onwards] = [5.0, 0.0]
    shown = pictures(summary_figure(scene, None, title="clip", time=time, flow=(flow, edges)))
    assert len(shown) == 4 * count
    for picture in shown[3 * count :]:
        np.testing.assert_array_equal(picture.images[0].get_array(), np.broadcast_to([255, 0, 0], (height, width, 3)))


def test_summary_of_maps_without_contrast_or_depth(scene, motion, time, tmp_path):
    flat = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan), confidence=np.zeros_like(scene.depth))
    write_summary(tmp_path / "summary.png", flat, motion, title="clip", time=time)
    assert read(tmp_path / "summary.png").std() > 10
