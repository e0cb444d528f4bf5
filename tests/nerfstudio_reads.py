"""What nerfstudio's own parser makes of a folder. Run by an interpreter that has nerfstudio: see test_nerfstudio.py.

Takes {"folder": ..., "pixels": [[x, y], ...]} as JSON from its standard input, and writes JSON to the file named.
"""

import json
import pathlib
import sys

import torch
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig


def main(answer: pathlib.Path) -> None:
    asked = json.load(sys.stdin)
    config = NerfstudioDataParserConfig(data=pathlib.Path(asked["folder"]), eval_mode="all", load_3D_points=False)
    outputs = config.setup().get_dataparser_outputs("train")
    x, y = torch.tensor(asked["pixels"]).T
    coords = outputs.cameras.get_image_coords()[y, x]
    rays = [outputs.cameras.generate_rays(t, coords=coords) for t in range(len(outputs.cameras))]
    found = {
        "images": list(map(str, outputs.image_filenames)),
        "masks": list(map(str, outputs.mask_filenames)),
        "origins": [ray.origins.tolist() for ray in rays],
        "directions": [ray.directions.tolist() for ray in rays],
        "nerfstudio_from_world": outputs.dataparser_transform.tolist(),
        "scale": outputs.dataparser_scale,
    }
    answer.write_text(json.dumps(found))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
