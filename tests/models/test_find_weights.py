# SPDX-License-Identifier: Apache-2.0
"""Whether the name of a model means a local folder or a repository of the hub."""

import socket
from pathlib import Path

import pytest

from sohes.models import weights
from sohes.models.weights import WeightsError, find_weights, is_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a run and a model; requests to the hub fail the test."""
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/default/weights/instruct", "models/entity", "jobs/three/weights"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / weights.WEIGHTS_FILE).touch()

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """Names that were requested from the hub."""
    names = []
    monkeypatch.setattr(weights, "snapshot_download", lambda name, **_: names.append(name) or "/downloaded")
    return names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("runs/defualt", "did you mean 'runs/default'?"),
        ("runs/anything", "nearest existing folder: 'runs'"),
        ("./models/entitty", "did you mean 'models/entity'?"),
        ("../elsewhere/x", "nearest existing folder: '..'"),
        ("/nowhere/at/all", "nearest existing folder: '/'"),
        ("~/no/such/model", "nearest existing folder: '"),
        ("models/entty", "did you mean 'models/entity'?"),
        ("jobs/three/weihgts", "did you mean 'jobs/three/weights'?"),
        ("jbos/three/weights", "did you mean 'jobs'?"),
        ("modles", "did you mean 'models'?"),
        ("owner/name/", "nearest existing folder: '.'"),
        ("a\\b", "nearest existing folder: '.'"),
        ("own er/name", "nearest existing folder: '.'"),
        (Path("owner/name"), "nearest existing folder: '.'"),
    ],
)
def test_paths_are_never_requested_from_the_hub(here, asked, name, near):
    with pytest.raises(WeightsError) as caught:
        find_weights(name)
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not asked


@pytest.mark.parametrize("name", ["hf:owner/name", "hf:My-Org/model_v1.2", "owner/name", "my-org/entity.v2"])
def test_names_on_the_hub(here, asked, name):
    assert find_weights(name) == Path("/downloaded")
    assert asked == [name.removeprefix("hf:")]


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c", "hf:./name", "hf:/a/b", "hf:runs/", "hf:a b/c"])
def test_names_that_are_invalid_on_the_hub(here, asked, name):
    with pytest.raises(WeightsError, match=r"^expected hf:owner/name, got hf:"):
        find_weights(name)
    assert not asked


@pytest.mark.parametrize("what", [None, 5, b"runs/default", ["runs/default"]])
def test_other_types_are_refused(here, what):
    with pytest.raises(WeightsError, match=r"^expected a folder or hf:owner/name, got (NoneType|int|bytes|list)$"):
        find_weights(what)


def test_the_prefix_means_hub_even_if_a_folder_has_the_name(here, asked):
    assert find_weights("hf:models/entity") == Path("/downloaded")
    assert find_weights("models/entity") == Path("models/entity")
    assert asked == ["models/entity"]


def test_folders(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    assert find_weights("runs/default") == Path("runs/default/weights/instruct")
    assert find_weights("~/models/entity") == here / "models/entity"
    assert find_weights(here / "jobs" / "three") == here / "jobs/three/weights"
    with pytest.raises(WeightsError, match=r"^models/entity/model.safetensors is a file, expected the folder with"):
        find_weights("models/entity/model.safetensors")


def test_a_name_whose_first_part_exists_is_a_path(here):
    (here / "link").symlink_to("gone")
    (here / "file").touch()
    assert all(is_path(name) for name in ("models/x", "link/x", "file/x", "runs/x"))
    assert not is_path("other/x")


@pytest.mark.parametrize("name", ["owner/name", "hf:owner/name"])
def test_without_a_network(here, monkeypatch, name, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # else the client tries again for a minute
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsError, match=r"cannot get hf:owner/name from the hub: ") as caught:
        find_weights(name)
    assert ("there is no folder 'owner/name' here" in str(caught.value)) == (name == "owner/name")
    assert "\n" not in str(caught.value)
