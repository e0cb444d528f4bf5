"""The generated checkpoint has the official layout; converting a full-size one stays within limits."""

import os
import pathlib
import shutil
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from easi3r_jax.weights.checkpoint import load_checkpoint
from easi3r_jax.weights.convert import open_source
from tests import make_full_checkpoint, torch_writer

ROOT = pathlib.Path(__file__).parents[3]


def test_layout_is_that_of_torch(index, files, tmp_path):
    aliases = {"dec_norm.bias": "enc_norm.bias"}
    manifest = {"entries": index["manifest"], "args_model_string": index["model_string"], "aliases": aliases}
    make_full_checkpoint.write(manifest, tmp_path / "made.pth", seed=3)
    with zipfile.ZipFile(tmp_path / "made.pth") as made, zipfile.ZipFile(files / "tiny_official.pth") as official:
        names = [{e.filename.partition("/")[2] for e in archive.infolist()} for archive in (made, official)]
        assert names[0] <= names[1]  # torch adds metadata
        for entry in made.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            assert (entry.header_offset + 30 + len(entry.filename) + len(entry.extra)) % torch_writer.ALIGNMENT == 0
        assert made.testzip() is None
    source, reference = (open_source(p) for p in (tmp_path / "made.pth", files / "tiny_official.pth"))
    assert source.config == reference.config
    assert {n: t.shape for n, t in source.tensors.items()} == {n: t.shape for n, t in reference.tensors.items()}
    assert source.tensors["dec_norm.bias"].identity == source.tensors["enc_norm.bias"].identity
    for name, tensor in source.tensors.items():
        expected = make_full_checkpoint.random_weight(3, aliases.get(name, name), tensor.shape)
        np.testing.assert_array_equal(tensor.read(), expected)


@pytest.fixture
def disk(tmp_path):
    """A folder that is deleted after the test: pytest would keep the gigabytes of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_full_size_takes_at_most_a_minute_and_little_more_memory_than_the_file(disk):
    """2.3 GB: 1.05 of the file's size, since a part is read while another is written."""
    source, output = disk / "full.pth", disk / "output"
    subprocess.run([sys.executable, "tests/make_full_checkpoint.py", f"--output={source}"], cwd=ROOT, check=True)
    size = source.stat().st_size
    assert 2.1e9 < size < 2.3e9
    start = time.monotonic()
    command = [sys.executable, "-m", "convert", f"--source={source}", f"--output={output}"]
    with subprocess.Popen(command, cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert time.monotonic() - start < 60
    assert usage.ru_maxrss * 1024 < 1.3 * size
    _, model, _ = load_checkpoint(output)
    kernel = np.asarray(model.encoder.blocks.mlp.fc1.kernel[17])
    theirs = make_full_checkpoint.random_weight(0, "enc_blocks.17.mlp.fc1.weight", (4096, 1024))
    np.testing.assert_array_equal(kernel, theirs.T)
