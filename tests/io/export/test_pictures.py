"""Frames of videos, and contact sheets."""

import dataclasses

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw

from easi3r_jax.io.pictures import panels as pictures
from easi3r_jax.io.pictures import plots
from easi3r_jax.io.pictures.colors import UNKNOWN, Scale
from easi3r_jax.io.pictures.gallery import Gallery
from easi3r_jax.io.pictures.panels import Film


def shown(film, t, number=0):
    """The region of a layer in frame t, reduced to the layer's own resolution."""
    rows, columns = film.region(number)
    picture = film[t][rows, columns]
    factor = picture.shape[0] // film.layers[number].draw(0).shape[0]
    small = picture[::factor, ::factor]
    np.testing.assert_array_equal(picture, small.repeat(factor, 0).repeat(factor, 1))  # squares, without interpolation
    return small


def is_written(picture, text, left, middle, anchor="lm", faint=True):
    """Whether a picture shows exactly this text at this place: compared with the text drawn again by PIL."""
    color = pictures._FAINT if faint else pictures._TEXT
    again = Image.new("RGB", (picture.shape[1], picture.shape[0]), pictures._BACKGROUND)
    draw = ImageDraw.Draw(again)
    draw.text((left, middle), text, color, pictures._font(), anchor=anchor)
    x0, y0, x1, y1 = (int(v) for v in draw.textbbox((left, middle), text, pictures._font(), anchor=anchor))
    place = np.s_[y0 : y1 + 1, x0 : x1 + 6]
    return bool(text) and np.array_equal(np.asarray(again)[place], picture[place])


@pytest.mark.parametrize(("height", "width"), [(24, 32), (512, 64), (64, 512), (288, 512)])
def test_names_numbers_and_times_are_not_truncated(height, width):
    """Not even above and below very narrow pictures."""
    scale = Scale("viridis", 0.5, 8.0, log=True)
    names = ["attention, mean, source", "attention, mean, reference", "b"]
    layers = [pictures.Layer(name, lambda t: np.full((height, width, 3), t, np.uint8), scale) for name in names]
    for count in (3, 1):
        film = Film(layers[:count], np.arange(12) * 10.25, columns=3)
        for number, name in enumerate(names[:count]):
            rows, columns = film.region(number)
            assert is_written(film[2], name, columns.start, rows.start - pictures._STRIP // 2, faint=False)
            right = columns.stop + pictures._MARGIN // 2 + pictures._BAR + 6
            assert is_written(film[2], "8", right, rows.start, "la") and is_written(
                film[2], "0.5", right, rows.stop - 1, "ld"
            )
        for t, words in ((11, "frame 11, 112.75 s"), (-2, "frame 10, 102.50 s")):
            assert is_written(film[t], words, pictures._MARGIN, film[t].shape[0] - pictures._STRIP // 2)


def test_names_and_numbers_of_a_contact_sheet():
    layer = pictures.Layer("depth (world units)", lambda t: np.full((512, 64, 3), 100 + t, np.uint8))
    for count in (40, 1):
        sheet = pictures.contact_sheet(layer, count)
        assert is_written(sheet, layer.name, pictures._MARGIN, pictures._STRIP // 2, faint=False)
        for t in pictures.spread(count, 24):
            rows, columns = np.nonzero((sheet == 100 + t).all(axis=-1))
            assert is_written(sheet, str(t), columns.min(), rows.max() + 1 + pictures._STRIP // 2)


def test_near_and_dynamic_pixels_are_bright_and_the_score_has_a_fixed_scale(scene):
    for layer, values, sign in (
        (pictures.depth_layer(scene), scene.depth, -1),
        (pictures.confidence_layer(dataclasses.replace(scene, confidence=scene.depth)), scene.depth, 1),
        (pictures.score_layer(scene), scene.dynamic_score, 1),
    ):
        order = np.argsort(values[1], axis=None)
        light = layer.draw(1).reshape(-1, 3).astype(int).sum(axis=1)[order]
        assert sign * (light[-1] - light[0]) > 200
    half = pictures.score_layer(dataclasses.replace(scene, dynamic_score=scene.dynamic_score / 2))
    assert (half.scale.low, half.scale.high) == (0, 1)


def test_a_film_shows_each_layer_at_its_place_and_large_enough(scene, time):
    film = Film(pictures.panel_layers(scene), time)
    assert len(film) == len(time) == len(list(film))
    sizes = {picture.shape for picture in film}
    assert len(sizes) == 1
    for t in range(len(time)):
        np.testing.assert_array_equal(shown(film, t, 0), scene.rgb[t])
        for number, layer in enumerate(film.layers):
            np.testing.assert_array_equal(shown(film, t, number), layer.draw(t))
    columns = film.region(0)[1]
    assert columns.stop - columns.start >= pictures.TILE_SIZE
    regions = np.zeros(film[0].shape[:2], int)
    for number in range(4):
        regions[film.region(number)] += 1
    assert regions.max() == 1  # they do not overlap


def test_large_frames_are_not_enlarged():
    assert pictures.enlargement(288, 512, pictures.ALONE_SIZE) == 1
    assert pictures.enlargement(64, 96, 384) == 4
    assert pictures.enlargement(97, 64, 384) == 4


def test_a_number_has_the_same_colour_in_all_frames_and_at_the_scale(scene, time):
    depth = scene.depth.copy()
    depth[:, 3, 5] = 3.0
    depth[0] *= 0.5  # a scale per frame would hide it
    depth[0, 3, 5] = 3.0
    film = Film([pictures.depth_layer(dataclasses.replace(scene, depth=depth))], time)
    colors = {tuple(shown(film, t)[3, 5]) for t in range(len(time))}
    assert len(colors) == 1
    # In the bar beside the picture, that colour is at the height of that number.
    scale = film.layers[0].scale
    rows, columns = film.region(0)
    bar = film[0][rows, columns.stop + pictures._MARGIN // 2 + 2]
    found = np.flatnonzero((np.abs(bar.astype(int) - next(iter(colors))).max(axis=1)) <= 3)
    numbers = scale.numbers(np.linspace(1, 0, len(bar)))
    assert found.size
    np.testing.assert_allclose(numbers[found], 3.0, rtol=0.03)


def test_bars_and_names_do_not_change_over_time(scene, motion, time):
    film = Film(pictures.attention_layers(scene, motion), time, columns=3)
    outside = np.ones(film[0].shape[:2], bool)
    for number in range(6):
        outside[film.region(number)] = False
    outside[-pictures._STRIP :] = False  # the frame's number
    for t in range(1, len(time)):
        np.testing.assert_array_equal(film[t][outside], film[0][outside])
    assert (film[0][-pictures._STRIP :] != film[1][-pictures._STRIP :]).any()


def test_attention_is_shown_token_by_token(scene, motion, time):
    film = Film(pictures.attention_layers(scene, motion), time, columns=3)
    names = [layer.name for layer in film.layers]
    assert names[1:] == [
        "attention, mean, source", "attention, mean, reference", "dynamic score", "attention, std, source",
        "attention, std, reference",
    ]  # fmt: skip
    for number, values in ((1, "mean_src"), (2, "mean_ref"), (4, "std_src"), (5, "std_ref")):
        values = getattr(motion.temporal, values)
        expected = film.layers[number].scale.colors(values[1]).repeat(8, 0).repeat(8, 1)  # 3x4 tokens of 24x32 pixels
        np.testing.assert_array_equal(shown(film, 1, number), expected)


def test_dynamic_pixels_are_red_and_static_ones_grey(scene, time):
    film = Film([pictures.mask_layer(scene)], time)
    picture, mask = shown(film, 1).astype(int), scene.dynamic_mask[1]
    assert (picture[mask][:, 0] > picture[mask][:, 1:].max(axis=1)).mean() > 0.95
    assert np.ptp(picture[~mask], axis=1).max() == 0
    np.testing.assert_allclose(picture[~mask][:, 0], 89 + 0.65 * scene.rgb[1][~mask].mean(axis=1), atol=1.5)  # paler


def test_missing_depth_is_grey(scene, time):
    depth = scene.depth.copy()
    depth[1, 2, 3:6] = [0, np.nan, -1]
    film = Film([pictures.depth_layer(dataclasses.replace(scene, depth=depth))], time)
    np.testing.assert_array_equal(shown(film, 1)[2, 3:6], [UNKNOWN] * 3)


def test_confidence_zeroed_by_the_clean_up_is_grey_and_not_in_the_scale(scene, time):
    """The clean-up writes 0 where points float, often at most pixels; the network's confidences are above 1."""
    confidence = 1 + scene.depth
    confidence[:, :, ::2] = 0
    layer = pictures.confidence_layer(dataclasses.replace(scene, confidence=confidence))
    assert layer.scale.low > 1
    np.testing.assert_array_equal(layer.draw(1)[:, ::2], np.broadcast_to(UNKNOWN, layer.draw(1)[:, ::2].shape))
    assert (layer.draw(1)[:, 1::2] != UNKNOWN).any(axis=-1).all()


@pytest.mark.parametrize(("count", "columns", "rows"), [(1, 4, 1), (7, 3, 3), (60, 6, 4)])
def test_a_contact_sheet_has_frames_in_rows(count, columns, rows):
    """Each frame has a uniform colour of its own."""
    colors = np.random.default_rng(0).integers(100, 256, (count, 3), np.uint8)
    layer = pictures.Layer("image", lambda t: np.broadcast_to(colors[t], (40, 50, 3)).copy())
    sheet = pictures.contact_sheet(layer, count, max_frames=24, columns=columns)
    frames = pictures.spread(count, 24)
    assert frames[0] == 0 and frames[-1] == count - 1 and len(frames) == min(count, 24)
    assert np.ptp(np.diff(frames)) <= 1 if count > 1 else True
    places = [np.argwhere((sheet == colors[t]).all(axis=-1)) for t in frames]
    tops, lefts = (np.array([place.min(axis=0)[axis] for place in places]) for axis in (0, 1))
    for place in places:
        assert len(place) == np.prod(np.ptp(place, axis=0) + 1) >= 40 * 50  # a rectangle
    assert len(np.unique(tops)) == rows and len(np.unique(lefts)) == min(columns, count)
    order = np.lexsort((lefts, tops))
    np.testing.assert_array_equal(order, np.arange(len(frames)))


def test_large_frames_are_reduced_on_a_contact_sheet():
    layer = pictures.Layer("image", lambda t: np.zeros((720, 1280, 3), np.uint8))
    assert pictures.contact_sheet(layer, 24).shape[1] < 2000


def test_missing_data_is_omitted_with_a_reason(scene, motion, time):
    everything = Gallery(scene, time, motion=motion, threshold=0.4, losses=np.ones(5))
    assert everything.omitted == {}
    assert set(everything.films) == {"panel", "depth", "masks", "attention"}
    assert len(everything.films["panel"].layers) == 4
    assert set(everything.plots) == {"losses", "trajectory", "score"}

    older = Gallery(scene, time)
    assert set(older.omitted) == {"attention", "threshold of the score", "losses"}
    assert all(older.omitted.values())
    for name in ("attention", "losses"):
        assert "by a network that sees all frames at once" in older.omitted[name]
    assert set(older.films) == {"panel", "depth", "masks"} and set(older.plots) == {"trajectory", "score"}

    still = dataclasses.replace(
        scene, dynamic_mask=np.zeros_like(scene.dynamic_mask), dynamic_score=np.zeros_like(scene.dynamic_score)
    )
    nothing = Gallery(still, time, losses=np.zeros(0))
    assert set(nothing.omitted) == {"masks", "attention", "score", "losses"}
    assert [layer.name for layer in nothing.films["panel"].layers] == ["image", "depth (world units)", "confidence"]
    assert set(nothing.layers) == {"image", "depth"}
    # Masks may come from the user or from flow: then there is no score.
    given = Gallery(dataclasses.replace(still, dynamic_mask=scene.dynamic_mask), time)
    assert "masks" in given.films and len(given.films["panel"].layers) == 3


def test_each_plot_file_holds_the_plot_of_its_name(scene, motion, time, tmp_path):
    losses, centres = np.linspace(3, 1, 9), scene.world_from_cam[:, :3, 3] + [0.1, 0.2, 0.3]
    gallery = Gallery(scene, time, motion=motion, threshold=0.4, losses=losses, true_centres=centres)
    writers = gallery.writers(videos=False, gif=False, stills=True)
    for name, figure in (
        ("losses", plots.loss_figure(losses)),
        ("trajectory", plots.trajectory_figure(scene.world_from_cam, centres)),
        ("score", plots.score_figure(scene.dynamic_score, 0.4)),
    ):
        writers[f"plot_{name}.png"](tmp_path / name)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        with Image.open(tmp_path / name) as found:
            np.testing.assert_array_equal(np.asarray(found), np.asarray(canvas.buffer_rgba()))
