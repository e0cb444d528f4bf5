"""Conversions are atomic; a source that is given to a program is converted only once."""

import errno
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import orbax.checkpoint as ocp
import pytest

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.weights.checkpoint import FORMAT_VERSION, load_checkpoint, load_metadata
from easi3r_jax.weights.convert import cache, convert, resolve
from easi3r_jax.weights.convert.conversion import hash_file


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
    assert seen == {"hash": (1, 1), "convert": (1, 1)}


def test_checksum_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert hash_file(tmp_path / "x").startswith("ba7816bf8f01cfea")
    with pytest.raises(CheckpointError, match="Cannot read"):
        hash_file(tmp_path / "y")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_failed_conversion_keeps_the_older_checkpoint(files, older, failure):
    path, before = older

    def fail_late(stage, done, total, _):
        # The last step of the tiny file: by then, all parts but the last are written.
        if stage == "convert" and done == total and len(list(path.parent.glob(".*/weights/*"))) == 3:
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
    for moment in ("hash", "convert"):
        shutil.copy(files / "tiny_legacy.pth", source)
        size = source.stat().st_size

        def grow(stage, *_, moment=moment, size=size):
            if stage == moment and source.stat().st_size == size:
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


class TestCache:
    @pytest.fixture
    def source(self, files, tmp_path, monkeypatch):
        monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "cache"))
        return pathlib.Path(shutil.copy(files / "tiny_official.pth", tmp_path / "source.pth"))

    def resolve(self, source):
        """The folder, and the stages that ran."""
        stages = []
        return resolve(source, lambda stage, *_: stages.append(stage)), set(stages)

    def test_a_second_call_reads_nothing_again(self, source, monkeypatch):
        first, stages = self.resolve(source)
        assert stages == {"hash", "convert"}
        assert first == cache.cache_folder() / hashlib.sha256(source.read_bytes()).hexdigest()
        monkeypatch.setattr(cache, "write", None)
        monkeypatch.setattr(cache, "hash_file", None)
        assert self.resolve(source) == (first, set())
        assert self.resolve(os.path.relpath(source)) == (first, set())
        load_checkpoint(first)

    def test_a_copy_is_recognised_by_its_content(self, source, tmp_path):
        first, _ = self.resolve(source)
        shutil.copy(source, tmp_path / "copy.pth")
        assert self.resolve(tmp_path / "copy.pth") == (first, {"hash"})

    def test_a_touched_file_is_hashed_again_but_not_converted(self, source):
        first, _ = self.resolve(source)
        os.utime(source, ns=(1, 1))
        assert self.resolve(source) == (first, {"hash"})

    def test_a_changed_source_is_converted_again(self, source, weights, make_pth):
        first, _ = self.resolve(source)
        changed = {**weights, "enc_norm.weight": weights["enc_norm.weight"] + np.float32(1)}
        shutil.move(make_pth(changed), source)
        second, stages = self.resolve(source)
        assert second != first and stages == {"hash", "convert"}
        scales = [np.asarray(load_checkpoint(path)[1].encoder.norm.scale[...]) for path in (first, second)]
        np.testing.assert_array_equal(scales[0] + np.float32(1), scales[1])

    def test_a_changed_configuration_is_converted_again(self, source, files, tmp_path):
        folder = pathlib.Path(shutil.copytree(files / "hf_tiny", tmp_path / "hub"))
        first, _ = self.resolve(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "pos_embed": "RoPE50"}))
        second, _ = self.resolve(folder)
        assert [load_metadata(path)[0].rope_base for path in (first, second)] == [100.0, 50.0]

    @pytest.mark.parametrize("damage", ["config.json is gone", "another version", "index is garbage", "index lies"])
    def test_a_damaged_cache_is_repaired(self, source, damage):
        first, _ = self.resolve(source)
        index = first.parent / "sources.json"
        if damage == "config.json is gone":
            (first / "config.json").unlink()
        elif damage == "another version":
            header = json.loads((first / "config.json").read_text())
            (first / "config.json").write_text(json.dumps({**header, "format_version": FORMAT_VERSION + 1}))
        else:
            index.write_text("[" if damage == "index is garbage" else json.dumps({str(source): [1, 2]}))
        assert self.resolve(source)[0] == first
        load_checkpoint(first)
        assert sorted(os.listdir(first.parent)) == sorted((first.name, "sources.json"))

    def test_a_converted_checkpoint_is_used_directly(self, source, tmp_path):
        convert(source, tmp_path / "own")
        assert self.resolve(tmp_path / "own") == (tmp_path / "own", set())
        assert not (tmp_path / "cache").exists()

    def test_a_refused_source_leaves_no_folder(self, source, weights, make_pth):
        missing = make_pth({n: a for n, a in weights.items() if n != "dec_norm.weight"})
        with pytest.raises(CheckpointError, match=r"1 tensor missing: dec_norm\.weight"):
            resolve(missing)
        assert os.listdir(cache.cache_folder()) == ["sources.json"]

    def test_an_unwritable_cache_is_an_error_with_a_remedy(self, source, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("mine")
        monkeypatch.setenv("EASI3R_JAX_CACHE", str(tmp_path / "file" / "cache"))
        with pytest.raises(OutputError, match="Set EASI3R_JAX_CACHE"):
            resolve(source)

    def test_another_process_may_finish_first(self, source, monkeypatch):
        first, _ = self.resolve(source)
        usable, answers = cache._usable, iter([False, True])
        monkeypatch.setattr(cache, "_usable", lambda path: next(answers) and usable(path))

        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
        assert self.resolve(source)[0] == first
