"""Files: atomic, the same value gives the same bytes, broken ones are named."""

import hashlib
import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from engines import REPOSITORY

from seam import io
from seam.errors import SeamError


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "policy.json"
    io.write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        io.write_atomic(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["policy.json"]


def test_writing_makes_the_folder_and_respects_the_umask(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    umask = os.umask(0o027)
    try:
        io.write_text(path, "x")
    finally:
        os.umask(umask)
    assert path.read_text() == "x"
    assert path.stat().st_mode & 0o777 == 0o640


def test_json_round_trip_gives_the_same_bytes(tmp_path):
    value = {"b": [1, 2.5, None, True], "a": {"é": "x"}}
    io.write_json(tmp_path / "a.json", value)
    io.write_json(tmp_path / "b.json", io.read_json(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert io.read_json(tmp_path / "a.json") == value
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["b", "a"]


def test_json_refuses_what_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        io.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("content", ["{", "", "[1,", "\x00"])
def test_broken_json_is_named(tmp_path, content):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(SeamError, match="metrics.json: not valid JSON"):
        io.read_json(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' * 100 + "1" + "}" * 100, "nested too deeply"),
        ("9" * 5_000, "an integer of 5,000 digits"),
        (f"[{10**400}]", "an integer of 401 digits"),
        ('{"limit": NaN}', "NaN is no finite number"),
        ('{"limit": -Infinity}', "-Infinity is no finite number"),
        ('{"limit": 1e999}', "1e999 is no finite number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands there twice"),
        ('["\\ud800"]', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        (b'["\xff"]', "can't decode byte 0xff"),
        ('[""]'.encode("utf-16"), "can't decode byte 0xff"),
    ],
)
def test_json_that_we_never_write_is_named(tmp_path, content, reason):
    path = tmp_path / "metrics.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SeamError, match="metrics.json: not valid JSON .*; if a stage made it, delete it") as error:
        io.read_json(path)
    assert reason in str(error.value) and len(str(error.value)) < 400


def test_json_of_other_programs_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"smile": "\\ud83d\\ude00", "macs": 123456789012345678901234567890}')
    assert io.read_json(path) == {"smile": "\U0001f600", "macs": 123456789012345678901234567890}


def test_a_folder_is_no_json(tmp_path):
    with pytest.raises(SeamError, match="Is a directory"):
        io.read_json(tmp_path)


@pytest.mark.parametrize("read", [io.read_json, io.read_csv, io.load_tensors])
def test_missing_files_are_named(tmp_path, read):
    with pytest.raises(SeamError, match="nothing.here: no such file"):
        read(tmp_path / "nothing.here")


@pytest.mark.parametrize("content", [b"a,b\n\xff,1\n", b"a\n" + b"x" * 200_000, b'a\n"\0' + b"x" * 200_000])
def test_what_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "h.csv").write_bytes(content)
    with pytest.raises(SeamError, match="h.csv: not CSV in UTF-8"):
        io.read_csv(tmp_path / "h.csv")
    with pytest.raises(SeamError, match="Is a directory"):
        io.read_csv(tmp_path)


def test_csv_round_trip(tmp_path):
    io.write_csv(tmp_path / "h.csv", [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}])
    assert (tmp_path / "h.csv").read_bytes() == b"step,loss\n1,0.5\n2,0.25\n"
    assert io.read_csv(tmp_path / "h.csv")[1] == {"step": "2", "loss": "0.25"}


def test_tensors_round_trip_and_corruption_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    shared = torch.arange(6.0).reshape(2, 3)
    io.save_tensors(path, {"a": shared.t(), "b": shared})  # not contiguous, and sharing memory
    loaded = io.load_tensors(path)
    assert torch.equal(loaded["a"], shared.t()) and torch.equal(loaded["b"], shared)
    first = path.read_bytes()
    io.save_tensors(path, {"a": shared.t(), "b": shared})
    assert path.read_bytes() == first
    path.write_bytes(first[:-5])
    with pytest.raises(SeamError, match="model.safetensors: not a valid safetensors file"):
        io.load_tensors(path)


def test_tensors_are_written_to_the_file_itself(tmp_path):
    """safetensors' own `save_file` makes a file beside it, which a kill leaves there under a name of its own."""
    path = tmp_path / "model.safetensors"
    path.touch()
    number = path.stat().st_ino
    io.write_tensors(path, {"a": torch.ones(2)}, {"format": "pt"})
    assert path.stat().st_ino == number and torch.equal(io.load_tensors(path)["a"], torch.ones(2))


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"seam")
    assert io.sha256(tmp_path / "x") == hashlib.sha256(b"seam").hexdigest()


def test_git_state_outside_a_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    io.git_state.cache_clear()
    try:
        assert io.git_state() == {"commit": None, "dirty": None}
    finally:
        io.git_state.cache_clear()


def test_names_of_tensors_are_read_without_the_tensors(tmp_path):
    path = tmp_path / "w.safetensors"
    io.save_tensors(path, {"b": torch.ones(2), "a": torch.zeros(1)})
    assert sorted(io.tensor_names(path)) == ["a", "b"]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(SeamError, match="w.safetensors: not a valid safetensors file"):
        io.tensor_names(path)
    with pytest.raises(SeamError, match="none.safetensors: no such file"):
        io.tensor_names(tmp_path / "none.safetensors")


def test_versions_are_told_without_loading_what_they_are_of():
    heavy = "{'onnx', 'onnxruntime', 'torch'} & {*sys.modules}"
    code = f"import sys; from seam import io; print(io.software()['onnxruntime'], {heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split() == [version("onnxruntime"), "set()"]
