"""SAM 2 on PyTorch, with random weights: agreement with the library's own video iterator, and refused input."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from easi3r_jax.core.errors import CheckpointError, ConfigError
from easi3r_jax.inference.refine import Sam2Refiner, sam2
from easi3r_jax.inference.refine.alternate import _steady
from tests.sam2_network import save_small_sam2

pytestmark = pytest.mark.torch

T, H, W = 7, 40, 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam2")
    save_small_sam2(folder)
    return folder


@pytest.fixture(scope="module")
def refiner(folder):
    return Sam2Refiner(folder, device="cpu")


@pytest.fixture(scope="module")
def rgb():
    return np.random.default_rng(0).integers(0, 256, (T, H, W, 3), np.uint8)


def square(lost=()):
    """A square that moves; its mask is lost in some frames."""
    masks = np.zeros((T, H, W), bool)
    for t in set(range(T)) - set(lost):
        masks[t, 10:30, 8 + 2 * t : 28 + 2 * t] = True
    return masks


def as_the_library_does(folder, rgb, masks):
    """By the library's own session, video tensor and iterator; resizing by the definition of its arguments."""
    import torch
    from transformers import Sam2VideoInferenceSession, Sam2VideoModel

    model = Sam2VideoModel.from_pretrained(folder).eval()
    size = model.config.image_size
    resize = torch.nn.functional.interpolate
    video = resize(torch.tensor(rgb).permute(0, 3, 1, 2) / 255.0, (size, size), mode="bilinear", antialias=True)
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    refined = masks.copy()
    for parity in (1, 0):
        session = Sam2VideoInferenceSession(
            video=(video - mean) / deviation, video_height=H, video_width=W, dtype=torch.float32
        )
        prompts = [t for t in range(parity, len(masks), 2) if masks[t].any()]
        for t in prompts:
            prompt = resize(torch.tensor(masks[t])[None, None].float(), (size, size), mode="bilinear", antialias=True)
            session.add_mask_inputs(session.obj_id_to_idx(1), t, (prompt >= 0.5).float())
            session.obj_with_new_inputs = [1]
            model(session, frame_idx=t)
        if prompts:
            found = {}
            for reverse in (False, True):
                for out in model.propagate_in_video_iterator(session, start_frame_idx=prompts[0], reverse=reverse):
                    found.setdefault(out.frame_idx, resize(out.pred_masks, (H, W), mode="bilinear")[0, 0].numpy() > 0)
            alone = not any(masks[t].any() for t in range(1 - parity, len(masks), 2))
            for t in range(0 if alone else 1 - parity, len(masks), 1 if alone else 2):
                if t not in prompts:
                    refined[t] |= found[t]
    return _steady(refined, masks)  # see test_alternate.py


@pytest.mark.parametrize("lost", [(), (3,), (0, 1, 2), (1, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_it_goes_through_the_video_as_the_library_does(refiner, folder, rgb, lost):
    masks = square(lost)
    refined = refiner(rgb, masks)
    assert refined.dtype == bool and refined.shape == (T, H, W)
    assert (refined & masks == masks).all()
    np.testing.assert_array_equal(refined, as_the_library_does(folder, rgb, masks))
    changed = np.any(refined != masks, axis=(1, 2))
    assert changed.any() and not refined.all()  # random weights do find something


def test_frames_decide_what_is_found(refiner, rgb):
    assert np.any(refiner(rgb, square()) != refiner(255 - rgb, square()))


def test_the_result_repeats_and_read_only_arrays_are_accepted(refiner, rgb):
    arrays = rgb.copy(), square((2,))
    for array in arrays:
        array.flags.writeable = False
    np.testing.assert_array_equal(refiner(*arrays), refiner(*arrays))


def test_without_masks_nothing_is_found(refiner, rgb):
    empty = np.zeros((T, H, W), bool)
    np.testing.assert_array_equal(refiner(rgb, empty), empty)


def test_progress_is_reported(refiner, rgb):
    heard = []
    refiner(rgb, square(), progress=lambda *told: heard.append(told))
    assert [told[:3] for told in heard] == [("refine", done, 2 * T) for done in range(2 * T + 1)]


def test_frames_are_prepared_as_the_network_was_trained():
    """A size of its own stays, a colour stays one, and the mean colour of its training images is 0."""
    noise = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    frames = sam2._PreparedFrames(noise, 16)
    assert len(frames) == 2
    expected = (noise[1].transpose(2, 0, 1) / 255 - np.reshape(sam2._MEAN, (3, 1, 1))) / np.reshape(
        sam2._DEVIATION, (3, 1, 1)
    )
    np.testing.assert_allclose(frames[1].numpy(), expected, atol=1e-5)
    plain = np.broadcast_to(np.array([124, 116, 104], np.uint8), (1, 30, 50, 3))
    prepared = sam2._PreparedFrames(plain, 16)[0].numpy()
    assert prepared.shape == (3, 16, 16) and np.ptp(prepared, axis=(1, 2)).max() < 1e-5
    assert np.abs(prepared).max() < 0.01


def test_most_prompts_bound_what_a_frame_looks_at(folder, rgb):
    all_of_them = Sam2Refiner(folder, device="cpu")(rgb, square())
    nearest = Sam2Refiner(folder, device="cpu", most_prompts=2)(rgb, square())
    assert np.any(nearest != all_of_them)
    enough = Sam2Refiner(folder, device="cpu", most_prompts=4)(rgb, square())
    np.testing.assert_array_equal(enough, all_of_them)


@pytest.mark.parametrize("count", [1, -1])
def test_impossible_numbers_of_prompts_are_refused(folder, count):
    with pytest.raises(ConfigError, match=f"got {count}"):
        Sam2Refiner(folder, most_prompts=count)


def test_an_unknown_device_is_refused(folder):
    with pytest.raises(ConfigError, match="no device 'abacus'"):
        Sam2Refiner(folder, device="abacus")


def test_too_little_memory_is_reported_in_one_line(refiner, rgb, monkeypatch):
    import torch

    def full(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(sam2._Sam2Tracker, "prompt", full)
    with pytest.raises(ConfigError, match="XLA_PYTHON_CLIENT_MEM_FRACTION"):
        refiner(rgb, square())


def test_the_record_names_the_weights(refiner, folder):
    assert refiner.metadata["source_name"] == str(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert refiner.metadata["source_sha256"] == digest
    assert {"torch", "transformers"} <= set(refiner.metadata)


def test_a_name_is_looked_for_on_the_hub(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(sam2, "fetch", lambda *told: asked.append(told) or folder)
    assert Sam2Refiner(device="cpu").metadata["source_name"] == "facebook/sam2.1-hiera-large"
    assert [told[:2] for told in asked] == [(sam2.RELEASED, ("config.json", "model.safetensors"))]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def refused(folder, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        Sam2Refiner(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_the_files_is_refused(copy, name):
    (copy / name).unlink()
    refused(copy, f"no {name} in ")


def test_a_path_that_is_not_there_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for path in (tmp_path / "nowhere", "models/nowhere", "nowhere"):
        refused(path, "There is no config.json and no model.safetensors")


@pytest.mark.parametrize("text", ["", "[]", '{"model_type": "dinov2"}', '{"model_type": "sam2"}'])
def test_another_network_is_refused(copy, text):
    (copy / "config.json").write_text(text)
    refused(copy, "config.json cannot be read" if text in ("", "[]") else "network of type")


def test_weights_of_other_shapes_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["memory_fuser_intermediate_dim"] = 24
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "cannot be loaded as SAM 2")


def test_incomplete_weights_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["no_memory_embedding"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "lacks 1 of SAM 2's tensors, e.g. no_memory_embedding")


def test_weights_of_another_version_are_refused(copy):
    """As SAM 2.1's under a configuration of SAM 2.0: the library drops what that does not have."""
    config = json.loads((copy / "config.json").read_text())
    assert config["enable_occlusion_spatial_embedding"] and config["enable_temporal_pos_encoding_for_object_pointers"]
    config["enable_occlusion_spatial_embedding"] = False
    config["enable_temporal_pos_encoding_for_object_pointers"] = False
    (copy / "config.json").write_text(json.dumps(config))
    refused(copy, "3 of its tensors are not of this configuration, e.g. occlusion_spatial_embedding_parameter")


def test_tensors_of_no_network_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    tensors["mystery.weight"] = np.zeros(3, np.float32)
    del tensors["no_memory_embedding"]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "lacks 1 of SAM 2's tensors.*; 1 of its tensors are not of this configuration, e.g. mystery.weight")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(copy, value):
    tensors = load_file(copy / "model.safetensors")
    tensors["no_memory_embedding"] = np.full_like(tensors["no_memory_embedding"], value)
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, "1 have NaN or infinite numbers, e.g. no_memory_embedding")


def test_damaged_weights_are_refused(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(copy, "cannot be loaded as SAM 2")


def test_other_progress_bars_are_left_unchanged(folder, capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled()
    Sam2Refiner(folder, device="cpu")
    assert logging.is_progress_bar_enabled() == before
    assert capfd.readouterr() == ("", "")
