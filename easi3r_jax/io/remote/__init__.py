"""Data where it lies: inputs and results in object stores and on web servers, through fsspec.

    local("s3://bucket/clip.mp4")                     # a copy on this disk, in a bounded cache; a path stays itself
    with writing("s3://bucket/results/clip") as out:  # a folder on this disk, uploaded when the block succeeds
        ...

An uploaded folder has a marker, `easi3r_upload.json`, written last: its files and that they are complete. A folder
whose marker says otherwise is refused, and a result without one is not a result.
"""

from easi3r_jax.io.remote.address import is_address, name_of
from easi3r_jax.io.remote.cache import local
from easi3r_jax.io.remote.marker import MARKER
from easi3r_jax.io.remote.upload import Output, writing

__all__ = ["MARKER", "Output", "is_address", "local", "name_of", "writing"]
