"""Compares our writers with libraries for the same formats: seconds, size, memory beyond the output.

Linux only. See the docstrings of `easi3r_jax.io.export.ply`, `glb` and `colmap` for what each library lacks.

python -m tests.io.export.libraries --frames=300
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import plyfile
import pycolmap
import trimesh

from easi3r_jax.io import export, results
from easi3r_jax.io.export import colmap, glb, ply
from easi3r_jax.io.export.pointcloud import camera_lines, camera_size, iterate_groups, point_cloud
from easi3r_jax.io.export.tracks import tracked_points
from tests.io.export.measure import in_own_process, report
from tests.viewer.conftest import make_scene, write_scene

_POINTS = 2_000_000  # as scene.ply and scene.glb of a result
_TRACKED = 200_000  # as exports


def plys(folder: pathlib.Path, library: str) -> None:
    """scene.ply without its cameras."""
    scene = results.load_scene(folder).scene
    cloud = point_cloud(scene, max_points=_POINTS)
    groups = list(iterate_groups(cloud))
    xyz = np.concatenate([points.xyz for _, points in groups])
    rgb = np.concatenate([points.rgb for _, points in groups])
    frame = np.repeat([t for t, _ in groups], [len(points) for _, points in groups]).astype(np.int32)
    kind = (frame >= 0).astype(np.uint8)

    def by_plyfile(path: pathlib.Path) -> None:
        columns = {**dict(zip("xyz", xyz.T, strict=True)), **dict(zip(("red", "green", "blue"), rgb.T, strict=True))}
        columns |= {"kind": kind, "frame": frame}
        vertices = np.empty(len(xyz), [(name, values.dtype) for name, values in columns.items()])
        for name, values in columns.items():
            vertices[name] = values
        plyfile.PlyData([plyfile.PlyElement.describe(vertices, "vertex")]).write(path)

    def by_trimesh(path: pathlib.Path) -> None:
        points = trimesh.PointCloud(xyz, rgb)
        points.vertex_attributes = {"kind": kind, "frame": frame}
        points.export(path)

    write = {"ours": lambda path: ply.write_ply(path, cloud, scene), "plyfile": by_plyfile, "trimesh": by_trimesh}
    report(f"ply, {library}", folder.parent / f"{library}.ply", write[library])


def glbs(folder: pathlib.Path, library: str) -> None:
    """scene.glb: by trimesh without animation, cameras, colours in linear light."""
    saved = results.load_scene(folder)
    scene = saved.scene
    cloud = point_cloud(scene, max_points=_POINTS)

    def by_trimesh(path: pathlib.Path) -> None:
        whole, matrix = trimesh.Scene(), glb.gltf_from_world(scene)
        names = {t: "background" if t < 0 else f"foreground_{t:05d}" for t, _ in iterate_groups(cloud)}
        for t, points in iterate_groups(cloud):
            cloud_of_t = trimesh.PointCloud(points.xyz, points.rgb)
            whole.add_geometry(cloud_of_t, node_name=names[t], geom_name=names[t], transform=matrix)
        lines = camera_lines(scene, camera_size(scene)).reshape(-1, 2, 3)
        whole.add_geometry(trimesh.load_path(lines), node_name="frusta", geom_name="frusta", transform=matrix)
        whole.export(path)

    write: dict[str, Callable[[pathlib.Path], object]] = {
        "ours": lambda path: glb.write_glb(path, cloud, scene, saved.time),
        "trimesh": by_trimesh,
    }
    report(f"glb, {library}", folder.parent / f"{library}.glb", write[library])


def colmaps(folder: pathlib.Path, library: str, *kinds: str) -> None:
    """A model as "binary", as "text", or as both."""
    saved = results.load_scene(folder)
    exported = export.frames_of(saved.scene, saved.time)
    points = tracked_points(saved.scene, min_confidence=exported.min_confidence, max_points=_TRACKED)
    model = colmap._Model.of(saved.scene, exported.views, points)

    def by_pycolmap(path: pathlib.Path) -> None:
        reconstruction = pycolmap.Reconstruction()
        width, height = model.size
        for number, parameters in enumerate(model.cameras, 1):
            reconstruction.add_camera_with_trivial_rig(
                pycolmap.Camera(camera_id=number, model="PINHOLE", width=width, height=height, params=parameters)
            )
        rows = zip(model.poses, model.camera, model.names, model.keypoints, strict=True)
        for number, (pose, camera, name, keypoints) in enumerate(rows, 1):
            xy = np.stack([keypoints["x"], keypoints["y"]], axis=1)
            image = pycolmap.Image(name=name, keypoints=xy, camera_id=int(camera) + 1, image_id=number)
            cam_from_world = pycolmap.Rigid3d(pycolmap.Rotation3d(pose[[1, 2, 3, 0]]), pose[4:])
            reconstruction.add_image_with_trivial_frame(image, cam_from_world)
        for number, (xyz, rgb, track) in enumerate(zip(model.xyz, model.rgb, model.tracks, strict=True), 1):
            elements = [pycolmap.TrackElement(image, index) for image, index in track.tolist()]
            point = pycolmap.Point3D(xyz=xyz, color=rgb, track=pycolmap.Track(elements=elements), error=0.0)
            reconstruction.add_point3D_with_id(number, point)
        write = {"binary": reconstruction.write_binary, "text": reconstruction.write_text}
        for kind in kinds:
            (path / kind).mkdir(parents=True)
            write[kind](path / kind)

    def ours(path: pathlib.Path) -> None:
        write = {"binary": colmap._write_binary, "text": colmap._write_text}
        for kind in kinds:
            (path / kind).mkdir(parents=True)
            write[kind](path / kind, model)

    write = {"ours": ours, "pycolmap": by_pycolmap}
    report(f"{'+'.join(kinds)}, {library}", folder.parent / f"{library}-{len(kinds)}", write[library])
    print(f"    {len(points)} points, {sum(map(len, model.tracks))} observations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=300, help="of the made-up clip of 512x288 pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_scene(pathlib.Path(scratch) / "clip", make_scene(options.frames, 288, 512)).folder
        for measure, libraries, *kinds in (
            (plys, ("ours", "plyfile", "trimesh")),
            (glbs, ("ours", "trimesh")),
            (colmaps, ("ours", "pycolmap"), "binary"),
            (colmaps, ("ours", "pycolmap"), "binary", "text"),
        ):
            for library in libraries:
                in_own_process(measure, folder, library, *kinds)


if __name__ == "__main__":
    main()
