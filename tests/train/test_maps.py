"""Maps: what is where, and that nothing is half there or deleted that isn't ours."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from async_trainer import Maps
from async_trainer.errors import ConfigurationError
from async_trainer.files.atomic import write_json
from async_trainer.snapshot import capture
from async_trainer.train import maps as maps_file

CONFIG = {"model": "tests.Net", "metrics": ["loss"]}


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def used(path: Path) -> Maps:
    """A directory in which something was trained."""
    maps = Maps(path)
    maps.create(CONFIG)
    maps.initial.write_text("weights")
    for index in (10, 2):
        split = maps.split(index)
        split.checkpoints.mkdir(parents=True)
        write_json(split.config, {"status": "finished"})
        for name in ("best-loss.pt", "final.safetensors", ".final.pt.1-2.partial", "notes.txt"):
            (split.checkpoints / name).write_text(f"{index} {name}")
    return maps


# ------------------------------------------------------------------------------------------------------------- layout


def test_each_file_has_its_place(tmp_path: Path) -> None:
    maps = Maps(tmp_path / "maps")
    split = maps.split(3)
    places = [
        maps.config, maps.initial, split.path, split.config, split.metrics, split.logs, split.checkpoints,
        split.validation("best-loss"), maps.test("held-out", "split-3_best-loss"),
    ]  # fmt: skip
    assert [str(place.relative_to(tmp_path / "maps")) for place in places] == [
        "maps.json", "initial.pt", "split-3", "split-3/split.json", "split-3/metrics.tsv", "split-3/logs",
        "split-3/checkpoints", "split-3/validation/best-loss", "test/held-out/split-3_best-loss",
    ]  # fmt: skip
    assert split.index == 3
    assert not maps.exists
    assert not split.exists
    assert maps.splits == ()
    assert split.checkpoint_names == ()
    assert not (tmp_path / "maps").exists()


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    maps = Maps("maps")
    monkeypatch.chdir("/")
    assert maps.path == tmp_path / "maps"
    assert os.fspath(maps) == str(tmp_path / "maps")
    assert repr(maps) == f"Maps('{tmp_path / 'maps'}')"


def test_maps_of_one_path_are_equal(tmp_path: Path) -> None:
    assert Maps(tmp_path) == Maps(str(tmp_path)) == pickle.loads(pickle.dumps(Maps(tmp_path)))
    assert len({Maps(tmp_path), Maps(tmp_path), Maps(tmp_path / "a")}) == 2
    assert Maps(tmp_path) != tmp_path


def test_hooks_in_the_background_get_the_maps_themselves(tmp_path: Path) -> None:
    maps = Maps(tmp_path)
    split = maps.split(0)
    assert capture(maps) is maps
    assert capture(split) is split


def test_splits_and_checkpoints_are_found(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    (maps.path / "split-5").mkdir()  # without split.json: nothing was started
    (maps.path / "split-x").mkdir()
    assert maps.splits == (2, 10)
    assert maps.split(2).checkpoint_names == ("best-loss", "final")
    assert maps.split(2).checkpoint("final").name == "final.safetensors"
    assert maps.checkpoint("split-10_best-loss").read_text() == "10 best-loss.pt"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("split-2_best-los", "did you mean 'split-2_best-loss'"),
        ("split-3_final", "did you mean 'split-"),
        ("best-loss", "did you mean|there are: split-2_best-loss, split-2_final, split-10_best-loss"),
        ("split-02_final", "no such checkpoint"),
        ("split-2_../../maps", "no such checkpoint"),
        (3, "model_checkpoint=3: there is no such checkpoint"),
        (None, "no such checkpoint"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, name: Any, hint: str) -> None:
    maps = used(tmp_path / "maps")
    with pytest.raises(ConfigurationError, match=hint):
        maps.checkpoint(name)


def test_a_split_without_that_checkpoint_says_so(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    with pytest.raises(ConfigurationError, match=r"split 2 has no such checkpoint; did you mean 'best-loss'"):
        maps.split(2).checkpoint("best-loss.pt")
    with pytest.raises(ConfigurationError, match="there are none yet"):
        maps.split(4).checkpoint("final")


@pytest.mark.parametrize("group", ["../up", "", ".", "..", ".hidden", "a/b", "a b", "a\n", None, 3])
def test_a_groups_name_is_a_folders(tmp_path: Path, group: Any) -> None:
    with pytest.raises(ConfigurationError, match="group_name="):
        Maps(tmp_path).test(group, "split-0_final")


# ------------------------------------------------------------------------------------------------------------ reading


def test_what_was_created_is_read_back(tmp_path: Path) -> None:
    maps = Maps(tmp_path / "new" / "maps")
    maps.create(CONFIG)
    assert maps.exists
    assert maps.read() == {"format": 1, **CONFIG}
    assert files(tmp_path) == {"new/maps/maps.json": maps.config.read_text()}


def test_what_can_not_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "does not exist"), ("file", "does not exist"), ("empty", "holds no maps.json")):
        with pytest.raises(ConfigurationError, match=f"{name} {message}: it is no directory of a Trainer"):
            Maps(tmp_path / name).read()
    maps = used(tmp_path / "maps")
    for text, message in (
        ('{"format": 2}', "another version"),
        ('{"model": 1}', "another version"),
        ("[]", "another version"),
        ('{"format": 1', "damaged"),
        ("", "damaged"),
    ):
        maps.config.write_text(text)
        with pytest.raises(ConfigurationError, match=message):
            maps.read()
    maps.config.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="damaged"):
        maps.read()


def test_what_an_interrupted_overwrite_has_put_aside_is_found(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    maps.path.rename(tmp_path / ".maps.replaced")
    with pytest.raises(ConfigurationError, match=r"does not exist \(what an interrupted overwrite .* is in .*replaced"):
        maps.read()


def test_a_split_that_was_not_trained_says_so(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    assert maps.split(2).read() == {"status": "finished"}
    with pytest.raises(ConfigurationError, match="split 1: no training was started on it"):
        maps.split(1).read()
    maps.split(2).config.write_text("{")
    with pytest.raises(ConfigurationError, match="damaged"):
        maps.split(2).read()


# ----------------------------------------------------------------------------------------------- creating, overwriting


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    Maps(tmp_path).create(CONFIG)
    assert Maps(tmp_path).exists


def test_what_a_killed_process_has_left_of_maps_json_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".maps.json.12-0.partial").write_text("{")
    Maps(tmp_path).create(CONFIG)
    assert Maps(tmp_path).read()["model"] == "tests.Net"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name", ["thesis.tex", ".hidden", "split-0/split.json", "maps.json/a", "initial.pt", "test/a", "a.partial"]
)
def test_a_directory_of_something_else_stays_as_it_is(tmp_path: Path, overwrite: bool, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigurationError, match="holds files that no Trainer has written"):
        Maps(tmp_path).create(CONFIG, overwrite=overwrite)
    assert files(tmp_path) == {name: "mine"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ['{"clinicadl": "1.0"}', "[]", "not json", ""])
def test_a_maps_json_of_another_program_stays_as_it_is(tmp_path: Path, overwrite: bool, text: str) -> None:
    (tmp_path / "maps.json").write_text(text)
    (tmp_path / "weights").write_text("mine")
    with pytest.raises(ConfigurationError, match="no Trainer has written"):
        Maps(tmp_path).create(CONFIG, overwrite=overwrite)
    assert files(tmp_path) == {"maps.json": text, "weights": "mine"}


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file, not a directory"):
        Maps(tmp_path / "file").create(CONFIG, overwrite=True)
    assert files(tmp_path) == {"file": "mine"}


def test_an_earlier_trainers_directory_is_kept_unless_asked_for(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    before = files(tmp_path)
    with pytest.raises(ConfigurationError, match=r"earlier Trainer; Trainer\.from_maps.*overwrite=True deletes it"):
        maps.create({"model": "new"})
    assert files(tmp_path) == before


def test_an_overwritten_directory_is_as_a_new_one_and_what_is_beside_it_stays(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    (tmp_path / "maps2").mkdir()
    (tmp_path / "maps2" / "data").write_text("mine")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "scan").write_text("mine")
    (maps.path / "link").symlink_to(tmp_path / "data")
    maps.create({"model": "new"}, overwrite=True)
    assert maps.read() == {"format": 1, "model": "new"}
    assert set(files(tmp_path)) == {"maps/maps.json", "maps2/data", "data/scan"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "maps", "maps2"]


def test_through_a_link_the_directory_itself_is_overwritten(tmp_path: Path) -> None:
    used(tmp_path / "disk")
    (tmp_path / "maps").symlink_to(tmp_path / "disk")
    Maps(tmp_path / "maps").create({"model": "new"}, overwrite=True)
    assert (tmp_path / "maps").is_symlink()
    assert Maps(tmp_path / "disk").read()["model"] == "new"
    assert set(files(tmp_path / "disk")) == {"maps.json"}


def test_a_config_that_is_no_json_overwrites_nothing(tmp_path: Path) -> None:
    maps = used(tmp_path / "maps")
    before = files(maps.path)
    with pytest.raises(TypeError):
        maps.create({"model": object()}, overwrite=True)
    assert files(maps.path) == before


class Killed(BaseException):
    pass


def _raise(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("at", ["write", "first rename", "second rename", "delete"])
def test_an_interrupted_overwrite_leaves_the_old_or_the_new_and_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    maps = used(tmp_path / "maps")
    before = files(maps.path)
    rename: Callable[..., Path] = Path.replace

    def fails(self: Path, target: Any) -> Path:
        if (self == maps.path and at == "first rename") or (self.name == ".maps.made" and at == "second rename"):
            raise Killed
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fails)
        if at == "write":
            patch.setattr(maps_file, "write_json", _raise)
        if at == "delete":
            patch.setattr(shutil, "rmtree", _raise)
        with pytest.raises(Killed):
            maps.create({"model": "new"}, overwrite=True)
    if at == "delete":
        assert maps.read()["model"] == "new"
        assert set(files(maps.path)) == {"maps.json"}
    else:
        assert files(maps.path) == before
    maps.create({"model": "newer"}, overwrite=True)
    assert maps.read()["model"] == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["maps"]


KILLED_AT = """
import os, shutil, signal, sys
from pathlib import Path
from async_trainer.train.maps import Maps

calls = 0
def traced(function):
    def counted(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return counted

for owner, name in ((os, "replace"), (os, "rename"), (os, "fsync"), (os, "unlink"), (os, "mkdir"), (os, "rmdir"),
                    (Path, "replace"), (Path, "mkdir"), (Path, "unlink")):
    setattr(owner, name, traced(getattr(owner, name)))
Maps(sys.argv[1]).create({"model": "new"}, overwrite=True)
"""


@pytest.mark.slow
def test_killed_at_any_step_an_overwrite_has_lost_nothing_that_it_has_not_replaced(tmp_path: Path) -> None:
    ended, step = False, 0
    while not ended:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        maps = used(folder / "maps")
        before = files(maps.path)
        run = subprocess.run([sys.executable, "-c", KILLED_AT, maps.path, str(step)], check=False)
        ended = run.returncode == 0
        assert ended or run.returncode == -signal.SIGKILL
        if not maps.path.exists():  # between the two renames
            assert files(folder / ".maps.replaced") == before
            assert json.loads((folder / ".maps.made" / "maps.json").read_text())["model"] == "new"
        elif maps.read()["model"] == "new":
            assert set(files(maps.path)) == {"maps.json"}
        else:
            assert files(maps.path) == before
        maps.create({"model": "newer"}, overwrite=True)
        assert maps.read()["model"] == "newer"
    assert step > 8
