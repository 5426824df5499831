"""Checkpoints: nothing that may happen to their files ends in more than a warning."""

import json
import os
import pickle
import resource
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from seam.errors import SeamError
from seam.runtime.meter import Meter
from seam.training import checkpoint
from seam.training.checkpoint import Checkpoints, Run
from seam.training.optimizers import Group

CPU = torch.device("cpu")


def run(width=4, kind="sgd"):
    """A network with two kinds of optimizers, not trained yet."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.Dropout(0.5), nn.Conv2d(width, 2, 3))
    module = module.to(memory_format=torch.channels_last)
    groups = [Group(list(module[:3].parameters()), 0.1, kind), Group(list(module[3].parameters()), 0.01, "adam")]
    return Run(module, [group.optimizer() for group in groups], Meter(CPU))


def take_steps(state, count):
    for _ in range(count):
        loss = state.module(torch.randn(2, 2, 8, 8)).square().mean()
        loss.backward()
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.sums["loss"] = state.sums.get("loss", 0) + loss.detach()
        state.history.append({"step": state.step, "loss": round(loss.item(), 6)})


@pytest.fixture
def two(tmp_path):
    """A run's folder after its checkpoints of the steps 1 and 2."""
    checkpoints, state = Checkpoints(tmp_path / "run.safetensors"), run()
    for _ in range(2):
        take_steps(state, 1)
        assert checkpoints.save(state)
    return checkpoints


def flip(at):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(at * len(content))] ^= 1
        path.write_bytes(content)

    return damage


class Code:
    def __reduce__(self):
        return os.mkdir, ("harm",)


DAMAGES = {
    "one bit of the header": flip(0.02),
    "one bit of the data": flip(0.97),
    "the last bit": flip(1 - 1e-9),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
    "HTML": lambda path: path.write_text("<html>502\x1b[31m Bad Gateway</html>"),
    "other weights": lambda path: save_file({"a": torch.zeros(2)}, path),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "a checkpoint of torch.save": lambda path: torch.save({"step": 3}, path),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_run_goes_on_exactly(tmp_path, kind):
    checkpoints, state = Checkpoints(tmp_path / "run.safetensors"), run(kind=kind)
    take_steps(state, 3)
    checkpoints.save(state)
    take_steps(state, 3)
    other = run(kind=kind)
    assert Checkpoints(tmp_path / "run.safetensors").restore(other)
    other.continue_random()
    assert other.step == 3 and len(other.history) == 3
    take_steps(other, 3)
    assert other.history == state.history and torch.equal(other.sums["loss"], state.sums["loss"])
    for a, b in zip(state.module.state_dict().values(), other.module.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(state.optimizers, other.optimizers, strict=True):
        for values, found in zip(a.state.values(), b.state.values(), strict=True):
            assert values.keys() == found.keys()
            assert all(torch.equal(values[k], found[k]) and values[k].stride() == found[k].stride() for k in values)


def test_a_gpu_s_random_numbers_go_on_too(tmp_path, monkeypatch):
    """A stand-in for the GPU's generator: the network stays on the CPU, and says that it is there."""
    gpu, states = torch.device("cuda", 1), {torch.device("cuda", 1): torch.arange(16, dtype=torch.uint8)}
    monkeypatch.setattr(Run, "device", gpu)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    checkpoints, state = Checkpoints(tmp_path / "run.safetensors"), run()
    assert checkpoints.save(state)
    wanted, states[gpu] = states[gpu], torch.zeros(16, dtype=torch.uint8)
    assert checkpoints.restore(state)
    state.continue_random()
    assert states.keys() == {gpu} and torch.equal(states[gpu], wanted)


def test_a_file_holds_tensors_and_json_alone(two):
    with safe_open(two.path, "pt") as file:
        about = file.metadata()
    assert about.keys() == {"format", "state", "sha256"} and json.loads(about["state"])["step"] == 2


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(two, tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    DAMAGES[name](two.path)
    state = run()
    assert two.restore(state) and state.step == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"seam: warning: {two.path}: not a sound checkpoint (") and line.isprintable()
    assert not (tmp_path / "harm").exists()
    take_steps(state, 4)
    assert two.save(state)
    for expected in (5, 1):  # the damaged one did not push out the sound one before it
        found = run()
        assert two.restore(found) and found.step == expected
        two.path.unlink(missing_ok=True)
    assert not capsys.readouterr().err


def test_every_byte_counts(two):
    """Any one bit of a file may flip: it is seen, or was of no account (spaces)."""
    two.previous.unlink()
    content = two.path.read_bytes()
    expected = {name: value.clone() for name, value in run_of(two).module.state_dict().items()}
    for at in range(0, len(content), max(1, len(content) // 150)):
        two.path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        state = run()
        if two.restore(state):
            assert all(torch.equal(value, expected[name]) for name, value in state.module.state_dict().items())


def run_of(checkpoints):
    state = run()
    assert checkpoints.restore(state)
    return state


def test_with_both_damaged_it_starts_anew(two, capsys):
    two.path.write_bytes(b"")
    two.previous.write_text("<html>")
    state = run()
    assert not two.restore(state) and state.step == 0
    assert len(capsys.readouterr().err.splitlines()) == 2
    take_steps(state, 1)
    assert two.save(state) and two.restore(run())


@pytest.mark.parametrize("after", [None, ValueError])
def test_ctrl_c_in_the_middle_of_reading_is_no_damage(two, monkeypatch, after):
    digest = checkpoint._digest

    def interrupted(*content):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # what torch's own code makes of it
            raise ValueError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None
        if after is not None:
            raise after
        return digest(*content)

    files = sorted(two.path.parent.iterdir())
    monkeypatch.setattr(checkpoint, "_digest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        two.restore(run())
    assert sorted(two.path.parent.iterdir()) == files


def test_a_sound_one_of_another_model_is_an_error(two):
    with pytest.raises(SeamError, match="run.safetensors: the checkpoint does not fit the model"):
        two.restore(run(width=8))


def test_one_that_cannot_be_written_only_warns_and_once(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    checkpoints, state = Checkpoints(tmp_path / "file/run.safetensors"), run()
    assert not checkpoints.save(state) and not checkpoints.save(state)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"seam: warning: {tmp_path}/file/run.safetensors: cannot write the checkpoint (")


def test_a_full_disk_only_warns(two, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # Python ignores SIGXFSZ: writing fails
    try:
        assert not two.save(run())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "cannot write the checkpoint" in capsys.readouterr().err
    assert sorted(path.name for path in two.path.parent.iterdir()) == ["run.previous.safetensors", "run.safetensors"]
    assert run_of(two).step == 2


def test_what_a_kill_in_a_write_left_is_deleted_and_nothing_else(tmp_path):
    left = tmp_path / ".run.tmp-a1b2c3d4.safetensors"
    others = [tmp_path / name for name in (".run2.tmp-a1b2c3d4.safetensors", ".run.mine.safetensors", "run.csv")]
    for path in (left, *others):
        path.write_bytes(b"half")
    Checkpoints(tmp_path / "run.safetensors")
    assert not left.exists() and all(path.exists() for path in others)
