"""What is written is whole or not there, and what was damaged is named."""

import json
import os

import pytest

from basisnet_jax.workdir import files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError), files.replacing(path) as file:
        file.write("half")
        raise TypeError
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["a.json"]
    with pytest.raises(FileNotFoundError):
        files.write_json(tmp_path / "missing" / "a.json", {})


def test_a_folder_comes_into_place_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "folder"
    with pytest.raises(KeyError), files.replacing_folder(target) as folder:
        (folder / "a").write_text("a")
        raise KeyError
    assert os.listdir(tmp_path / "new") == []
    with files.replacing_folder(target) as folder:
        (folder / "a").write_text("a")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["a"]
    with pytest.raises(OSError), files.replacing_folder(target) as folder:
        (folder / "b").write_text("b")
    assert [path.name for path in target.iterdir()] == ["a"]


def test_what_was_damaged_is_named(tmp_path):
    for name in ("a", "b/c", "note"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    listed = files.checksums(tmp_path, left_out={"note"})
    assert list(listed) == ["a", "b/c"] and files.damaged(tmp_path, listed) is None
    (tmp_path / "note").write_text("changed")
    assert files.damaged(tmp_path, listed) is None
    (tmp_path / "b" / "c").write_text("d")
    assert files.damaged(tmp_path, listed) == "b/c"
    (tmp_path / "a").unlink()
    assert files.damaged(tmp_path, listed) == "a"


def test_a_full_disk_is_found_in_what_any_library_says():
    assert files.full_disk(ValueError("RESOURCE: No space left on device [x]")) == "No space left on device"
    assert files.full_disk(OSError("disk quota?")) is None
