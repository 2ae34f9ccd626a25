# SPDX-License-Identifier: Apache-2.0
"""What a name of a model means: a folder here, or a repository of the hub, and never the one for the other."""

import socket
from pathlib import Path

import pytest

from sohes.models import weights
from sohes.models.weights import WeightsError, find_weights, is_path


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a run and a model; a network that must not be touched."""
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
    """Names that the hub is asked for."""
    names = []
    monkeypatch.setattr(weights, "snapshot_download", lambda name, **_: names.append(name) or "/downloaded")
    return names


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("runs/defualt", "did you mean 'runs/default'?"),
        ("runs/anything", "nearest there is: 'runs'"),
        ("./models/entitty", "did you mean 'models/entity'?"),
        ("../elsewhere/x", "nearest there is: '..'"),
        ("/nowhere/at/all", "nearest there is: '/'"),
        ("~/no/such/model", "nearest there is: '"),
        ("models/entty", "did you mean 'models/entity'?"),
        ("jobs/three/weihgts", "did you mean 'jobs/three/weights'?"),
        ("jbos/three/weights", "did you mean 'jobs'?"),
        ("modles", "did you mean 'models'?"),
        ("owner/name/", "nearest there is: '.'"),
        ("a\\b", "nearest there is: '.'"),
        ("own er/name", "nearest there is: '.'"),
        (Path("owner/name"), "nearest there is: '.'"),
    ],
)
def test_names_of_folders_are_never_asked_from_the_hub(here, asked, name, near):
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
def test_names_that_the_hub_cannot_have(here, asked, name):
    with pytest.raises(WeightsError, match=r"^expected hf:owner/name, got hf:"):
        find_weights(name)
    assert not asked


@pytest.mark.parametrize("what", [None, 5, b"runs/default", ["runs/default"]])
def test_what_is_no_name(here, what):
    with pytest.raises(WeightsError, match=r"^expected a folder or hf:owner/name, got (NoneType|int|bytes|list)$"):
        find_weights(what)


def test_a_prefix_says_hub_even_where_a_folder_has_the_name(here, asked):
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


def test_a_first_part_that_is_here_makes_a_path(here):
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
