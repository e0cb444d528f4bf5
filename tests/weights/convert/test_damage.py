"""Damaged files: truncated anywhere, flipped bytes, false sizes. Each is refused in one line or read correctly.

A zip has checksums, so an accepted file must have the golden weights. The other formats have none: there, accepted
tensors must fit the file and the network.
"""

import io
import shutil
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from easi3r_jax.core.errors import CheckpointError
from easi3r_jax.weights.convert import open_source, table
from easi3r_jax.weights.convert.reading import Reading
from tests.torch_writer import Tensor, namespace, write

CASES = 100
#: Of random damage: the heavy checks add more of the same.
SEEDS = (0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2)))
SOURCES = ("tiny_official.pth", "tiny_legacy.pth", "model.safetensors")


@pytest.fixture
def place(files, tmp_path):
    """Writes bytes as a source, and returns its path."""

    def put(name, raw):
        if name.endswith(".safetensors"):
            shutil.copy(files / "hf_tiny" / "config.json", tmp_path)
        (tmp_path / name).write_bytes(raw)
        return tmp_path / name

    return put


def original(files, name):
    return (files / "hf_tiny" / name if name.endswith(".safetensors") else files / name).read_bytes()


def try_to_read(path):
    """Reads everything as a conversion does; None if it is refused. Other errors are raised."""
    size = path.stat().st_size
    try:
        source = open_source(path)
        reading = Reading(source)
        for tensor in source.tensors.values():
            assert tensor.nbytes <= size
        shapes = table.parameter_shapes(source.config)
        for name, array in reading:
            assert array.shape == shapes.pop(name) and array.dtype == np.float32
        assert not shapes
        return {name: tensor.read() for name, tensor in source.tensors.items()}
    except CheckpointError as error:
        message = str(error)
    assert message.isprintable()
    assert str(path.parent) in message
    return None


@pytest.mark.usefixtures("quick_shapes")
@pytest.mark.parametrize("name", SOURCES)
class TestMutations:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_truncation_anywhere(self, files, place, name, seed):
        raw = original(files, name)
        rng = np.random.default_rng(2 * seed)
        cuts = {*range(40), *range(len(raw) - 12, len(raw)), *rng.integers(0, len(raw), CASES).tolist()}
        for cut in sorted(cuts):
            assert try_to_read(place(name, raw[:cut])) is None, f"accepted {cut} of {len(raw)} bytes"

    @pytest.mark.parametrize("seed", SEEDS)
    def test_flipped_bytes(self, files, weights, place, name, seed):
        raw = original(files, name)
        rng = np.random.default_rng(2 * seed + 1)
        accepted = 0
        for case in range(CASES):
            mutated = bytearray(raw)
            reach = len(raw) if case % 2 else 16_000  # the description comes first
            for position in rng.integers(0, reach, 1 + case % 3):
                mutated[position] ^= rng.integers(1, 256)
            if name.endswith(".pth") and case % 4 == 0:  # the directory is at the end
                mutated[-int(rng.integers(1, 9000))] ^= 1 << rng.integers(8)
            found = try_to_read(place(name, bytes(mutated)))
            accepted += found is not None
            if found is not None and name == "tiny_official.pth":
                for key, value in found.items():
                    np.testing.assert_array_equal(value, weights[key], err_msg=f"case {case}: {key}")
        assert accepted < CASES  # some damage is detected

    def test_zeros_and_bytes_of_other_files(self, files, place, name):
        raw = original(files, name)
        for part in (raw[:8], raw[:64], raw[:4000], b""):
            for filling in (b"\0", b"\xff", b"PK\x03\x04", b"\x80\x02"):
                assert try_to_read(place(name, part + filling * 5000)) is None


@pytest.fixture
def small_memory():
    """Fails a test that allocates more than a few megabytes in Python or NumPy."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 30e6


@pytest.mark.usefixtures("small_memory")
class TestClaims:
    """Sizes larger than the file are refused before memory is allocated for them."""

    def claim(self, index, tensor, path, numbers):
        model = {"mask_token": tensor}
        write(path, {"args": namespace(model=index["model_string"]), "model": model}, [("0", numbers)])
        return path

    @pytest.mark.parametrize("numel", [9, 7, 10**12, 2**61])
    def test_storage_size_that_differs_from_the_file(self, index, tmp_path, numel):
        path = self.claim(index, Tensor("0", (8,), numel=numel), tmp_path / "x.pth", np.zeros(8, np.float32))
        with pytest.raises(CheckpointError, match="do not fill 32 bytes"):
            open_source(path)

    def test_tensor_larger_than_its_storage(self, index, tmp_path):
        path = self.claim(index, Tensor("0", (2**30,), numel=8), tmp_path / "x.pth", np.zeros(8, np.float32))
        with pytest.raises(CheckpointError, match="does not fit its 8 stored elements"):
            open_source(path)

    def test_missing_storage(self, index, tmp_path):
        path = self.claim(index, Tensor("1", (8,)), tmp_path / "x.pth", np.zeros(8, np.float32))
        with pytest.raises(CheckpointError, match="data of a tensor is missing"):
            open_source(path)

    @pytest.mark.parametrize("claim", [2**20, 2**32 - 2])
    def test_zip_entry_longer_than_the_file(self, index, tmp_path, claim):
        path = self.claim(index, Tensor("0", (8,)), tmp_path / "x.pth", np.zeros(8, np.float32))
        for name in (b"x/data.pkl", b"x/data/0"):
            raw = bytearray(path.read_bytes())
            entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(name))
            raw[entry + 20 : entry + 28] = struct.pack("<II", claim, claim)
            (tmp_path / "y.pth").write_bytes(raw)
            with pytest.raises(CheckpointError):
                open_source(tmp_path / "y.pth")

    def test_compressed_entries(self, index, tmp_path):
        """A zip bomb: its entries would grow a thousandfold. torch does not compress."""
        path = self.claim(index, Tensor("0", (8,)), tmp_path / "x.pth", np.zeros(8, np.float32))
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
        with pytest.raises(CheckpointError, match="compressed"):
            open_source(tmp_path / "y.pth")

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (("x/data.pkl", "x/data.pkl"), "two entries"),
            (("x/data.pkl", "y/data/0"), "not a single folder"),
            (("x/data.pkl", "/etc/passwd"), "UNSAFE"),
            (("x/data.pkl", "x/../../up"), "UNSAFE"),
            (("x/other", "x/version"), "no data.pkl"),
            (("data.pkl",), "not a single folder"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_other_zip_archives(self, tmp_path, names, words):
        with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
            for name in names:
                archive.writestr(name, b"\x80\x02}.")
        with pytest.raises(CheckpointError, match=words):
            open_source(tmp_path / "x.pth")

    @pytest.mark.parametrize("byteorder", [b"big", b"middle", b"x" * 1000])
    def test_byte_order(self, index, tmp_path, byteorder):
        buffer = io.BytesIO()
        path = self.claim(index, Tensor("0", (8,)), tmp_path / "x.pth", np.arange(8, dtype=np.float32))
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
            for entry in old.infolist():
                new.writestr(entry.filename, byteorder if entry.filename == "x/byteorder" else old.read(entry))
        path.write_bytes(buffer.getvalue())
        if byteorder == b"big":
            swapped = open_source(path).tensors["mask_token"].read()
            np.testing.assert_array_equal(swapped, np.arange(8, dtype="<f4").view(">f4"))
        else:
            with pytest.raises(CheckpointError, match="byte"):
                open_source(path)
