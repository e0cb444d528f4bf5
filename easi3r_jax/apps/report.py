"""Pictures, videos, plots and a report of a result.

    python -m experiments.report --scene=results/demo
    python -m experiments.report --scene=results/demo --output=pages/demo --gif
    python -m experiments.report --scene=results/demo --novideos        # a smaller page

Written into the result's folder, or another: report.html, one page that needs no other file and no network; panel.mp4
(image, depth, score, masks), depth.mp4, masks.mp4, attention.mp4; contact_*.jpg, plot_*.png. Parts for which a result
has no data are omitted, e.g. masks of a clip without a motion cue, and the page says so.
"""

from __future__ import annotations

from easi3r_jax.apps import cli
from easi3r_jax.apps.exporting import needs_own_output, uploaded_line
from easi3r_jax.apps.progress import Stages
from easi3r_jax.apps.reporting import PictureFlags
from easi3r_jax.core.errors import ConfigError
from easi3r_jax.io import remote, results
from easi3r_jax.io.pictures.gallery import ensure_gallery_writable

FLAGS = cli.Flags(__doc__)

_INPUT = FLAGS.group("What is shown")
SCENE = _INPUT.string("scene", "", "A result's folder, as reconstruct writes it, or its address.")
GROUND_TRUTH = _INPUT.string(
    "ground_truth",
    "",
    "An .npz with world_from_cam, for the true path (default: that of the result's clip, if it is still where "
    "config.json says).",
)

_OUTPUT = FLAGS.group("Output")
OUTPUT = _OUTPUT.output_folder(
    "output", "", "Folder of the files, or its address (default: the result's). Other files in it are kept."
)
PICTURES = PictureFlags(_OUTPUT, wanted=True)


def main() -> None:
    if not SCENE.value:
        raise ConfigError("--scene is required: the result to show, e.g. results/demo.")
    if not PICTURES.any():
        raise ConfigError("There is nothing to write: omit --novideos or --noreport, or add --gif.")
    needs_own_output(SCENE.value, OUTPUT.value)
    saved = results.load_result(SCENE.value)
    PICTURES.check()
    stages = Stages()
    name, truth = saved.saved_folder().name, GROUND_TRUTH.value
    with remote.writing(OUTPUT.value or saved.saved_folder(), progress=stages) as target:
        ensure_gallery_writable(target.folder)
        lines = PICTURES.write(saved, target.folder, name=name, ground_truth=truth, progress=stages)
    stages.close()
    print("\n".join(lines + uploaded_line(OUTPUT.value)))
