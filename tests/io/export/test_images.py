"""Depth and mask PNGs and the summary picture."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from easi3r_jax.io.export import summary_figure, write_depth, write_masks, write_summary
from easi3r_jax.io.pictures.panels import ATTENTION, confidence_layer, depth_layer, score_layer


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
    return list(figure.axes[0].images)


def texts_of(figure):
    """All but the title."""
    return figure.axes[0].texts[1:]


@pytest.mark.parametrize(("num_frames", "columns"), [(1, 1), (3, 3), (40, 8)])
def test_summary_spreads_frames_over_the_clip(scene, motion, num_frames, columns):
    index = np.arange(num_frames) % 3
    maps = type(motion.temporal)(*(m[index] for m in vars(motion.temporal).values()))
    motion = dataclasses.replace(motion, temporal=maps)
    scene = type(scene)(**{k: v[index] for k, v in vars(scene).items()})
    figure = summary_figure(scene, motion, title="clip", time=np.arange(num_frames) / 10)
    assert len(pictures(figure)) == 9 * columns
    titles = [text.get_text() for text in texts_of(figure) if text.get_text().startswith("frame ")]
    assert len(titles) == columns
    assert titles[0] == "frame 0\n0.00 s"
    assert titles[-1] == f"frame {num_frames - 1}\n{(num_frames - 1) / 10:.2f} s"


def labels(figure):
    texts = [text.get_text().replace("\n", " ") for text in texts_of(figure)]
    return [text for text in texts if not text.startswith("frame ")]


def test_the_summary_has_rows_for_available_data_only(scene, motion, time):
    """Windows give a score and masks without attention maps; masks from flow or from the user come without a score."""
    always = ["image", "depth (world units)", "confidence"]
    attention = [f"attention {what}, {role}" for role in ("source", "reference") for what in ("mean", "std")]
    still = dataclasses.replace(
        scene, dynamic_score=np.zeros_like(scene.depth), dynamic_mask=np.zeros_like(scene.dynamic_mask)
    )
    masked = dataclasses.replace(still, dynamic_mask=scene.dynamic_mask)
    for shown, maps, more in (
        (still, None, []),
        (masked, None, ["dynamic regions"]),
        (scene, None, ["dynamic score", "dynamic regions"]),
        (still, motion, [*attention, "dynamic score", "dynamic regions"]),
    ):
        assert labels(summary_figure(shown, maps, title="", time=time)) == always + more


def test_summary_shows_each_map_in_the_colours_of_the_videos(scene, motion, time):
    figure = summary_figure(scene, motion, title="clip", time=time)
    shown = np.array(pictures(figure), object).reshape(9, len(time))
    layers = {layer.name: layer for layer in (depth_layer(scene), confidence_layer(scene), score_layer(scene))}
    for row, name in ((1, "depth (world units)"), (2, "confidence"), (7, "dynamic score")):
        for t in range(len(time)):
            np.testing.assert_array_equal(shown[row, t].get_array(), layers[name].draw(t))
    for row, name in ((3, "mean_src"), (4, "std_src"), (5, "mean_ref"), (6, "std_ref")):
        expected = ATTENTION.colors(getattr(motion.temporal, name)[1])
        np.testing.assert_array_equal(shown[row, 1].get_array(), expected)
    bars = figure.axes[1:]
    depth = layers["depth (world units)"].scale
    ticks = [float(label.get_text()) for label in bars[0].get_yticklabels()]
    np.testing.assert_allclose(ticks, [depth.low, np.sqrt(depth.low * depth.high), depth.high], rtol=0.01)
    assert len(bars) == 7


@pytest.mark.parametrize(("height", "width"), [(64, 512), (512, 64)])
def test_labels_of_a_summary_do_not_touch(scene, motion, time, height, width):
    def stretched(x):
        return np.broadcast_to(x[:, :1, :1], (len(time), height, width, *x.shape[3:]))

    images = {k: stretched(v) for k, v in vars(scene).items() if v.shape[1:3] == scene.depth.shape[1:]}
    figure = summary_figure(dataclasses.replace(scene, **images), motion, title="", time=time)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [*texts_of(figure), *(label for axes in figure.axes[1:] for label in axes.get_yticklabels())]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
    assert len(boxes) == 3 + 9 + 7 * 3
    right, top = canvas.get_width_height()
    for i, box in enumerate(boxes):
        assert min(box.x0, box.y0) >= 0 and box.x1 <= right and box.y1 <= top
        assert not any(box.padded(-1).overlaps(other) for other in boxes[:i])


def test_the_summary_shows_flow_to_the_next_frame(scene, time):
    count, height, width = scene.depth.shape
    edges = np.array([(i, j) for i in range(count) for j in range(count) if i != j])
    flow = np.zeros((len(edges), height, width, 2), np.float32)
    onwards = np.isin(edges @ [10, 1], [1, 12, 21])  # from 0 to 1, from 1 to 2, and from the last frame back
    flow[onwards] = [5.0, 0.0]
    shown = pictures(summary_figure(scene, None, title="clip", time=time, flow=(flow, edges)))
    assert len(shown) == 6 * count
    for picture in shown[3 * count : 4 * count]:
        np.testing.assert_array_equal(picture.get_array(), np.broadcast_to([255, 0, 0], (height, width, 3)))


def test_summary_of_maps_without_contrast_or_depth(scene, motion, time, tmp_path):
    flat = dataclasses.replace(scene, depth=np.full_like(scene.depth, np.nan), confidence=np.zeros_like(scene.depth))
    write_summary(tmp_path / "summary.png", flat, motion, title="clip", time=time)
    assert read(tmp_path / "summary.png").std() > 10
