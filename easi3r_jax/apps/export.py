"""Exports a result for other tools.

    python -m experiments.export --scene=results/my_video --format=colmap,nerfstudio
    python -m experiments.export --scene=results/my_video --format=ply --every=5 --output=clouds
    python -m experiments.export --scene=results/my_video --format=colmap --source=frames

Each format becomes a folder: colmap (images, masks, binary and text model), nerfstudio (transforms.json, images,
masks, points), easi3r (the released programs' files), ply and glb (static, per frame, animated), exr and png (depth),
npz, full (depth, confidence and masks at the originals' size), gaussians (initial ones for splatting), rerun.

For their conventions see docs/conventions.md, for --keep, --scale_from and more docs/using.md.
"""

from __future__ import annotations

from easi3r_jax.apps import cli
from easi3r_jax.apps.exporting import SOURCE_HELP, needs_own_output, uploaded_line, write_exports
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.result_flags import KeepFlag, ScaleFlag, full_resolution_flag, with_full
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import export, remote, results

FLAGS = cli.Flags(__doc__)

_INPUT = FLAGS.group("What is exported")
SCENE = _INPUT.string("scene", "", "A result's folder, as reconstruct writes it, or its address.")
EVERY = _INPUT.integer("every", 1, "Take every n-th frame of the result.", at_least=1)
SOURCE = _INPUT.string(
    "source", "auto", f"Images of colmap, nerfstudio and npz, to which their cameras belong: {SOURCE_HELP}"
)
CONFIDENCE = _INPUT.number("cloud_confidence", export.MIN_CONFIDENCE, "Minimum confidence of static points.")
POINTS = _INPUT.integer("cloud_points", 200_000, "Maximum number of points in a cloud.", at_least=1, at_most=10**9)
KEEP = KeepFlag(_INPUT)
SCALE = ScaleFlag(_INPUT)

_OUTPUT = FLAGS.group("Output")
FORMAT = _OUTPUT.string("format", "", f"One or more, separated by commas: {', '.join(export.FORMATS)}.")
FULL_RESOLUTION = full_resolution_flag(_OUTPUT)
OUTPUT = _OUTPUT.output_folder(
    "output",
    "",
    "Folder, or its address, with a subfolder for each format (default: exports in the result). Existing ones are "
    "replaced.",
)


def main() -> None:
    formats = with_full(export.parse_formats(FORMAT.value), FULL_RESOLUTION.value)
    if not formats:
        raise ConfigError(f"--format is required: one or more of {', '.join(export.FORMATS)}, separated by commas.")
    if not SCENE.value:
        raise ConfigError("--scene is required: the result to export, e.g. results/demo.")
    needs_own_output(SCENE.value, OUTPUT.value)
    KEEP.check()
    SCALE.check()
    saved = results.load_result(SCENE.value)
    saved, scaled, factor = SCALE.applied(saved, SCALE.depth(saved.frames))
    keep = KEEP.pixels(saved)
    stages = Stages()
    with remote.writing(OUTPUT.value or saved.saved_folder() / "exports", progress=stages) as target:
        for name in formats:
            export.ensure_export_writable(target.folder / name)
        lines = write_exports(
            saved,
            formats,
            target.folder,
            source=SOURCE.value,
            every=EVERY.value,
            min_confidence=CONFIDENCE.value,
            max_points=POINTS.value,
            keep=keep,
            tracks_scale=factor,
            progress=stages,
        )
    stages.close()
    print("\n".join(scaled + lines + uploaded_line(OUTPUT.value)))
