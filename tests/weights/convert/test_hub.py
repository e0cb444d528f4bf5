"""Hub names: requests to the hub's client, and errors without a network. No network is used."""

import errno
import hashlib
import shutil

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from easi3r_jax.core.errors import CheckpointError, OutputError
from easi3r_jax.weights.checkpoint import load_metadata
from easi3r_jax.weights.convert import convert, open_source
from easi3r_jax.weights.convert.sources import RELEASED
from easi3r_jax.weights.hub import is_name

NAME = RELEASED[0]
NOT_FOUND = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its constructor needs an HTTP response


class Client:
    """Stands in for the hub's client; every use of the network raises `failure`."""

    def __init__(self, folder, failure):
        self.folder, self.failure = folder, failure
        self.cached, self.downloaded = False, []

    def try_to_load_from_cache(self, name, file):
        return str(self.folder / file) if self.cached else None

    def get_hf_file_metadata(self, url, timeout):
        assert url == f"https://huggingface.co/{NAME}/resolve/main/config.json" and timeout <= 10
        if self.failure:
            raise self.failure

    def hf_hub_download(self, name, file, etag_timeout):
        self.downloaded.append((name, file))
        return str(self.folder / file)


@pytest.fixture
def client(monkeypatch, files):
    client = Client(files / "hf_tiny", None)
    for name in ("try_to_load_from_cache", "get_hf_file_metadata", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(client, name))
    return client


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_are_names(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "text", ["model", "a/b/c", "/a/b", "../a", "a/../b", "./a", "~/a", "a/ b", "a/b\n", "", "a/" * 99]
)
def test_paths_are_not_names(text):
    assert not is_name(text)


def test_download_is_converted_with_the_released_licence(client, tmp_path):
    stages = []
    convert(NAME, tmp_path / "output", lambda stage, *_: stages.append(stage))
    assert client.downloaded == [(NAME, "config.json"), (NAME, "model.safetensors")]
    assert {"download", "convert"} <= set(stages)
    _, metadata = load_metadata(tmp_path / "output")
    assert metadata["source_name"] == NAME
    assert metadata["licence"].startswith("CC BY-NC-SA 4.0")


def test_models_in_the_hubs_cache_need_no_network(client):
    client.cached, client.failure = True, ConnectionError("no network")
    assert open_source(NAME).tensors
    assert not client.downloaded


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionError("no network"),
        OSError(errno.ENETUNREACH, "Network is unreachable"),
        TimeoutError("slow"),
        type("ConnectError", (Exception,), {})("of some HTTP library"),
        LocalEntryNotFoundError("offline mode is on"),
    ],
)
def test_without_a_network_the_error_says_what_to_download_by_hand(client, tmp_path, failure):
    client.failure = failure
    with pytest.raises(CheckpointError) as caught:
        convert(NAME, tmp_path / "output")
    message = str(caught.value)
    assert "\n" not in message
    for words in ("no connection", "config.json", "model.safetensors", f"https://huggingface.co/{NAME}/tree/main"):
        assert words in message
    assert "checkpoints/DUSt3R_ViTLarge_BaseDecoder_512_dpt/" in message
    assert not list(tmp_path.iterdir())


def test_a_model_downloaded_by_hand_needs_no_network(client, files, tmp_path):
    client.failure = ConnectionError("no network")
    shutil.copytree(files / "hf_tiny", tmp_path / "by_hand")
    convert(tmp_path / "by_hand", tmp_path / "output")
    _, metadata = load_metadata(tmp_path / "output")
    assert (
        metadata["source_sha256"] == hashlib.sha256((files / "hf_tiny" / "model.safetensors").read_bytes()).hexdigest()
    )
    assert client.downloaded == []


@pytest.mark.parametrize(
    ("failure", "kind", "words"),
    [
        (NOT_FOUND, CheckpointError, "no public model"),
        (EntryNotFoundError("404"), CheckpointError, "no DUSt3R or MASt3R in that format"),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError, "HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), OutputError, "HF_HOME"),
    ],
)
def test_other_failures_have_their_own_messages(client, tmp_path, failure, kind, words):
    client.failure = failure
    with pytest.raises(kind, match=words) as caught:
        convert(NAME, tmp_path / "output")
    assert NAME in str(caught.value)


def test_a_local_folder_takes_precedence(client, files, tmp_path, monkeypatch):
    client.failure = ConnectionError("no network")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(files / "hf_tiny", tmp_path / NAME)
    assert open_source(NAME).tensors
