"""Conversions are atomic; in memory and on disk, they give the same; a source is read in any order."""

import errno
import hashlib
import os
import pathlib
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.models import parameters_of
from easi3r_jax.weights.checkpoint import load_metadata
from easi3r_jax.weights.convert import convert, rules
from easi3r_jax.weights.load import load_flow_model, load_model_and_metadata


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def older(files, tmp_path):
    """A complete checkpoint, and its files."""
    path = tmp_path / "place" / "output"
    convert(files / "tiny_legacy.pth", path)
    return path, content(path.parent)


def test_the_output_records_the_source_of_the_weights(files, tmp_path):
    source, output = files / "tiny_official.pth", tmp_path / "new" / "output"
    summary = convert(source, output)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    config, metadata = load_metadata(output)
    assert (summary.path, summary.config, summary.source_sha256) == (output, config, sha256)
    assert (metadata["source_name"], metadata["source_sha256"]) == (str(source), sha256)
    assert "CC BY-NC-SA 4.0" in metadata["licence"] == summary.licence
    assert metadata["versions"].keys() == {"easi3r_jax", "jax", "numpy", "orbax-checkpoint"}
    parts = sorted(path.name for path in (output / "weights").iterdir())
    assert parts == ["decoder", "encoder", "head1", "head2"]
    assert os.listdir(output.parent) == ["output"]


def test_progress_ends_at_its_total(files, tmp_path):
    seen = {}
    convert(
        files / "tiny_official.pth",
        tmp_path / "output",
        lambda stage, done, total, _: seen.update({stage: (done, total)}),
    )
    assert seen == {"convert": (1, 1)}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_failed_conversion_keeps_the_older_checkpoint(files, older, failure):
    path, before = older

    def fail_late(stage, done, total, _):
        # The last step of the tiny file: by then, all parts but the last are being written or are written.
        if stage == "convert" and done == total and len(list(path.parent.glob(".*/weights/*"))) >= 2:
            raise failure

    with pytest.raises((KeyboardInterrupt, MemoryError, OutputError)):
        convert(files / "tiny_official.pth", path, fail_late)
    assert content(path.parent) == before
    assert os.listdir(path.parent) == ["output"]


def test_a_full_disk_keeps_the_older_checkpoint(files, older, monkeypatch):
    path, before = older
    save, calls = ocp.Checkpointer.save, []

    def failing(self, directory, **arguments):
        calls.append(directory)
        if len(calls) == 3:
            raise ValueError("RESOURCE: writing: No space left on device")
        return save(self, directory, **arguments)

    monkeypatch.setattr(ocp.Checkpointer, "save", failing)
    with pytest.raises(OutputError, match="no space left"):
        convert(files / "tiny_official.pth", path)
    assert content(path.parent) == before
    assert os.listdir(path.parent) == ["output"]


@pytest.mark.parametrize("moment", [".tmp-", ".old-"])
def test_interrupt_while_replacing_puts_the_older_one_back(files, older, monkeypatch, moment):
    path, before = older
    rename = pathlib.Path.rename

    def failing(self, target):
        if moment in self.name:
            monkeypatch.undo()
            raise KeyboardInterrupt
        rename(self, target)
        if moment in str(target):
            monkeypatch.undo()
            raise KeyboardInterrupt
        return target

    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with pytest.raises(KeyboardInterrupt):
        convert(files / "tiny_official.pth", path)
    assert content(path.parent) == before
    assert os.listdir(path.parent) == ["output"]


def test_too_little_disk_space_is_an_error_before_anything_is_written(files, older, monkeypatch):
    path, before = older
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(OutputError, match="MB free on that disk"):
        convert(files / "tiny_official.pth", path)
    assert content(path.parent) == before


def test_a_source_that_changes_while_it_is_read_is_refused(files, tmp_path):
    source = tmp_path / "growing.pth"
    shutil.copy(files / "tiny_legacy.pth", source)

    def grow(*_):
        with source.open("ab") as file:
            file.write(b"more")

    with pytest.raises(CheckpointError, match="changed while it was read"):
        convert(source, tmp_path / "output", grow)
    assert os.listdir(tmp_path) == ["growing.pth"]


def test_an_older_checkpoint_is_replaced_completely(files, older):
    path, before = older
    (path / "weights" / "stale").mkdir()
    convert(files / "tiny_official.pth", path)
    after = content(path.parent)
    assert not (path / "weights" / "stale").exists()
    assert after["output/config.json"] != before["output/config.json"]
    assert os.listdir(path.parent) == ["output"]


@pytest.mark.parametrize("obstacle", ["folder", "file", "root", "below a file", "long name"])
def test_other_files_and_folders_are_not_replaced(files, tmp_path, obstacle):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("mine")
    before = content(tmp_path)
    names = {"root": "/", "below a file": "file/sub/output", "long name": "x" * 300}
    with pytest.raises(OutputError):
        convert(files / "tiny_official.pth", tmp_path / names.get(obstacle, obstacle))
    assert content(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_symbolic_links_are_kept(files, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "output")
    for source in ("tiny_official.pth", "tiny_legacy.pth"):
        convert(files / source, tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert load_metadata(tmp_path / "disk" / "output")[1]["source_name"] == str(files / source)
    assert os.listdir(tmp_path / "disk") == ["output"]


def assert_same(network, other):
    for name, value in parameters_of(other).items():
        np.testing.assert_array_equal(parameters_of(network)[name], value)


@pytest.mark.parametrize("name", ["tiny_official.pth", "tiny_legacy.pth", "tiny_no_dec_blocks2.pth", "hf_tiny"])
def test_in_memory_and_on_disk_give_the_same(files, tmp_path, name):
    path = convert(files / name, tmp_path / "output").path
    network, metadata = load_model_and_metadata(files / name)
    on_disk, stored = load_model_and_metadata(path)
    assert_same(network, on_disk)
    for key in ("source_name", "source_sha256", "licence"):
        assert metadata[key] == stored[key]
    weights = files / name / "model.safetensors" if name == "hf_tiny" else files / name
    assert metadata["source_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_the_order_of_the_tensors_in_the_file_does_not_matter(weights, make_pth):
    tensors = [*weights.items()]
    np.random.default_rng(0).shuffle(tensors)
    in_order = make_pth(weights)
    mixed = make_pth(dict(tensors), name="mixed.pth")
    network, metadata = load_model_and_metadata(mixed)
    assert_same(network, load_model_and_metadata(in_order)[0])
    assert metadata["source_sha256"] == hashlib.sha256(mixed.read_bytes()).hexdigest()


def test_a_network_in_memory_is_checked_like_one_on_disk(files, weights, make_pth, tmp_path):
    broken = make_pth(weights | {"enc_norm.weight": weights["enc_norm.weight"] * np.float32(np.nan)})
    with pytest.raises(CheckpointError, match=r"NaN or infinite numbers in enc_norm\.weight"):
        load_model_and_metadata(broken)
    with pytest.raises(CheckpointError, match="which estimates no optical flow"):
        load_flow_model(files / "tiny_official.pth")
    source = shutil.copy(files / "tiny_legacy.pth", tmp_path / "growing.pth")

    def grow(*_):
        with open(source, "ab") as file:
            file.write(b"more")

    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_model_and_metadata(source, progress=grow)


@pytest.mark.parametrize(
    ("transform", "theirs", "ours"),
    [
        (rules.LINEAR, (5, 3), (3, 5)),
        (rules.LINEAR, (1, 4), (4, 1)),
        (rules.CONV, (5, 3, 2, 7), (2, 7, 3, 5)),
        (rules.POINTWISE, (5, 3, 1, 1), (3, 5)),
        (rules.TRANSPOSED, (5, 3, 4, 4), (5, 4, 4, 3)),
        (rules.PATCH, (5, 3, 4, 4), (48, 5)),
    ],
)
def test_changes_of_layout_are_undone(transform, theirs, ours):
    assert transform.their_shape(ours) == theirs
    dense = np.random.default_rng(0).standard_normal(theirs, np.float32)
    for x in (dense, np.asfortranarray(dense), np.repeat(dense, 2, -1)[..., ::2]):
        x.flags.writeable = False
        stack = np.full((2, *ours), np.nan, np.float32)
        transform.write(x, stack[1])
        np.testing.assert_array_equal(transform.undo(stack[1]), dense)
