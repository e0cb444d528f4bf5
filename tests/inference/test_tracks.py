"""3D tracks on rendered clips, against the exact motion of the objects."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import easi3r_jax as e3r
from easi3r_jax.io import results
from easi3r_jax.io.export.tapvid import write_tapvid
from tests.rendered import CONFIG, plan, rendered, rendered_result


def truth(tracks, seed: int):
    """Exact (T, N, 3) world positions of the surfaces that tracks start on, and (T, N) whether a frame shows them."""
    clip, poses = rendered(seed), plan(seed).world_from_object.astype(np.float64)
    points = tracks.xyz[tracks.query, np.arange(len(tracks.query))].astype(np.float64)
    x, y = np.rint(tracks.xy[tracks.query, np.arange(len(tracks.query))]).astype(int).T
    objects = clip.views.instance[tracks.query, y, x] - 1
    exact = np.repeat(points[None], CONFIG.num_frames, 0)
    shown = np.zeros(exact.shape[:2], bool)
    for n, (k, q) in enumerate(zip(objects, tracks.query, strict=True)):
        if k >= 0:
            move = poses[:, k] @ np.linalg.inv(poses[q, k])
            exact[:, n] = points[n] @ move[:, :3, :3].swapaxes(1, 2) + move[:, :3, 3]
    for t in range(CONFIG.num_frames):
        pose = clip.views.world_from_cam[t].astype(np.float64)
        inside = (exact[t] - pose[:3, 3]) @ pose[:3, :3]
        pixel = inside @ clip.views.intrinsics[t].astype(np.float64).T
        u, v = np.rint(pixel[:, :2] / pixel[:, 2:]).astype(int).T
        good = (pixel[:, 2] > 0) & (u >= 0) & (v >= 0) & (u < CONFIG.size[1]) & (v < CONFIG.size[0])
        shown[t, good] = np.abs(clip.views.depth[t][v[good], u[good]] - inside[good, 2]) < 0.05 * inside[good, 2]
    return exact, shown


def accuracy(seed: int, flow=e3r.dense_flow) -> dict[str, float]:
    """Figures of the tracks of a clip's exact geometry."""
    result = rendered_result(seed)
    tracks = e3r.track_points(result, 1500, flow=flow)
    exact, shown = truth(tracks, seed)
    away = np.linalg.norm(tracks.xyz - exact, axis=2)
    depth = np.linalg.norm(exact - result.scene.world_from_cam[:, None, :3, 3], axis=2)
    other = np.arange(CONFIG.num_frames)[:, None] != tracks.query
    found = {"visibility": float((tracks.visible == shown)[other].mean())}
    for name, kind in (("static", ~tracks.dynamic), ("dynamic", tracks.dynamic)):
        used = tracks.visible & shown & other & kind
        assert used.sum() > 100
        error = (away / depth)[used]
        found |= {f"{name} median": float(np.median(error)), f"{name} within 5 %": float((error < 0.05).mean())}
        resting = np.linalg.norm(exact - exact[tracks.query, np.arange(exact.shape[1])], axis=2) / depth
        found |= {f"{name} if it rested": float(np.median(resting[used]))}
    return found


def exact_flow(seed: int):
    def flow(frames, edges):
        clip = rendered(seed)
        pairs = {(t, t + 1): (clip.flow_forward[t], clip.visible_forward[t]) for t in range(CONFIG.num_frames - 1)}
        pairs |= {(t + 1, t): (clip.flow_backward[t], clip.visible_backward[t]) for t in range(CONFIG.num_frames - 1)}
        return tuple(np.stack(part) for part in zip(*(pairs[tuple(edge)] for edge in edges.tolist()), strict=True))

    return flow


def test_tracks_follow_the_exact_motion():
    for seed, flow, dynamic, within in ((0, exact_flow(0), 0.001, 0.985), (0, e3r.dense_flow, 0.008, 0.97)):
        found = accuracy(seed, flow)
        assert found["static median"] < 1e-5 and found["static within 5 %"] == 1
        assert found["dynamic median"] < dynamic and found["dynamic median"] < 0.25 * found["dynamic if it rested"]
        assert found["dynamic within 5 %"] > within
        assert found["visibility"] > 0.93


def test_flow_of_a_network_which_does_not_say_where_it_holds_is_checked_both_ways():
    def of_a_network(frames, edges):
        values, known = e3r.dense_flow(frames, edges)
        assert known is not None
        return values, None

    one, other = (e3r.track_points(rendered_result(0), 300, flow=flow) for flow in (e3r.dense_flow, of_a_network))
    np.testing.assert_array_equal(one.visible, other.visible)
    np.testing.assert_array_equal(one.xyz, other.xyz)
    assert one.dynamic.any() and not one.visible[:, one.dynamic].all()


def test_the_file_has_the_layout_of_tapvid_3d(tmp_path):
    result = rendered_result()
    tracks = e3r.track_points(result, 40)
    folder = results.save_result(tmp_path / "result", result, record={}, tracks=tracks)
    with np.load(folder / "tracks.npz", allow_pickle=False) as file:
        arrays = dict(file)
    count, (height, width) = CONFIG.num_frames, CONFIG.size
    assert arrays["tracks_XYZ"].shape == (count, 40, 3) and arrays["visibility"].shape == (count, 40)
    assert arrays["queries_xyt"].shape == (40, 3) and arrays["visibility"].dtype == bool
    for t, data in enumerate(arrays["images_jpeg_bytes"]):
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (width, height)
            assert np.abs(np.asarray(image, np.float64) - result.scene.rgb[t]).mean() < 4
    assert arrays["intrinsics_per_frame"].shape == (count, 3, 3) and "intrinsics" not in arrays
    assert str(arrays["unit"]) == "arbitrary"
    fx, fy, cx, cy = arrays["fx_fy_cx_cy"]
    query = arrays["queries_xyt"][:, 2].astype(int)
    points = arrays["tracks_XYZ"][query, np.arange(40)]  # each projects to where its track starts
    pixel = points[:, :2] / points[:, 2:] * [fx, fy] + [cx, cy]
    np.testing.assert_allclose(pixel, arrays["queries_xyt"][:, :2], atol=1e-2)
    assert arrays["visibility"][query, np.arange(40)].all()
    world = np.linalg.inv(arrays["extrinsics_w2c"])
    back = arrays["tracks_XYZ"] @ world[:, :3, :3].swapaxes(1, 2) + world[:, None, :3, 3]
    np.testing.assert_allclose(back, tracks.xyz, atol=1e-3)
    write_tapvid(tmp_path / "again.npz", result.scene, tracks.xyz, tracks.xy, tracks.visible, tracks.query)


def test_a_single_frame_and_a_full_set_of_pixels():
    one = rendered_result()
    scene = e3r.Scene4D(**{name: value[:1] for name, value in vars(one.scene).items()})
    frames = dataclasses.replace(
        one.frames, rgb=one.frames.rgb[:1], source_index=np.zeros(1, np.int32), time=np.zeros(1)
    )
    tracks = e3r.track_points(e3r.Reconstruction(scene=scene, frames=frames), CONFIG.size[0] * CONFIG.size[1])
    assert tracks.visible.all() and len(np.unique(tracks.xy[0], axis=0)) == CONFIG.size[0] * CONFIG.size[1]


def test_more_tracks_than_pixels_are_refused():
    most = 3 * CONFIG.size[0] * CONFIG.size[1]
    with pytest.raises(e3r.InputError, match=f"{most + 1} tracks of frames with {most} pixels"):
        e3r.track_points(rendered_result(), most + 1)
    with pytest.raises(e3r.InputError, match="at least one"):
        e3r.track_points(rendered_result(), 0)
    holes = dataclasses.replace(rendered_result().scene, depth=np.zeros_like(rendered_result().scene.depth))
    with pytest.raises(e3r.InputError, match="0 pixels with depth"):
        e3r.track_points(dataclasses.replace(rendered_result(), scene=holes), 9)
