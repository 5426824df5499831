"""SIGTERM and SIGINT while a training runs: a checkpoint, one line, the shell's exit code."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from digit_training import CPU, network, trained

from seam.models.build import build
from seam.quant.apply import quantize
from seam.runtime.meter import Meter
from seam.settings import Finetune, Model
from seam.training import loop, stop, supervised

END = {signal.SIGTERM: (SystemExit, 143), signal.SIGINT: (SystemExit, 130)}


@pytest.fixture
def command(monkeypatch):
    """As in a process of the command line; the test is over long before it would be ended."""
    monkeypatch.setitem(stop._process, "seconds", 600.0)


def rows(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("signum", END)
def test_a_stopped_run_goes_on_from_the_step_and_ends_the_same(
    images,
    tmp_path,
    monkeypatch,
    capsys,
    command,
    signum,
):
    monkeypatch.setattr(loop, "_ROWS_PER_EPOCH", 4)  # the stop comes between two rows
    handlers = [signal.getsignal(s) for s in END]

    def dropping():
        torch.manual_seed(0)
        return build(Model(name="test_resnet", kwargs={"drop_rate": 0.3}), 10, 1)

    whole = dropping()
    expected = trained(whole, images[0], epochs=2)
    resume, meter = tmp_path / "run.safetensors", Meter(CPU)
    seen = []
    model = dropping()

    def count(*_):
        seen.append(1)
        if len(seen) == 28:  # in the middle of the second epoch
            os.kill(os.getpid(), signum)
            os.kill(os.getpid(), signal.SIGINT)  # an engine's own comes second

    handle = model.register_forward_hook(count)
    with pytest.raises(SystemExit) as raised:
        trained(model, images[0], epochs=2, resume=resume, meter=meter)
    handle.remove()
    assert raised.value.code == END[signum][1]
    assert capsys.readouterr().err == "seam: stopped at step 28; the same command goes on from there\n"
    assert [signal.getsignal(s) for s in END] == handlers
    found, model = Meter(CPU), dropping()
    assert rows(trained(model, images[0], epochs=2, resume=resume, meter=found)) == rows(expected)
    assert found.steps == 44
    for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kept", [True, False])
def test_a_signal_while_statistics_are_re_estimated_loses_no_step(images, tmp_path, monkeypatch, capsys, command, kept):
    settings = Finetune(epochs=1, batch_size=64, kernels="eager", threads=1)
    resume = tmp_path / "run.safetensors" if kept else None

    def finetuned(meter):
        model = quantize(network(), {"layer1.0.conv1": (4, 4)})
        supervised.train(model, settings, images[0].subset(range(256)), 0, CPU, meter, resume=resume, label="finetune")
        return model

    def struck(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return re_estimate(*given)

    re_estimate = supervised.re_estimate
    with monkeypatch.context() as patched, pytest.raises(SystemExit) as raised:
        patched.setattr(supervised, "re_estimate", struck)
        finetuned(Meter(CPU))
    assert raised.value.code == 143
    goes_on = "the same command goes on from there" if kept else "no checkpoint of it was written"
    assert f"seam: stopped at step 4; {goes_on}\n" in capsys.readouterr().err
    if kept:
        meter = Meter(CPU)
        found = finetuned(meter)
        assert meter.steps == 4 and "statistics" in meter.parts
        resume.unlink()
        for a, b in zip(finetuned(Meter(CPU)).state_dict().values(), found.state_dict().values(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("once_a_row", "step"), [(False, 28), (True, 32)])
def test_processes_that_share_a_job_stop_after_the_step_at_which_they_agree(
    images, tmp_path, monkeypatch, capsys, command, once_a_row, step
):
    """One of two processes, the other one silent: on a GPU they agree once a row. What two do is test_distributed's."""
    monkeypatch.setattr(loop, "_ROWS_PER_EPOCH", 4)  # rows at the steps 5, 10, 15, 20, 22, 27, 32, ...
    monkeypatch.setattr(loop, "processes", lambda: 2)
    monkeypatch.setattr(loop, "_looks_once_a_row", lambda device: once_a_row)
    whole, model, resume = network(), network(), tmp_path / "run.safetensors"
    expected = trained(whole, images[0])
    seen = []

    def count(*_):
        seen.append(1)
        if len(seen) == 28:
            os.kill(os.getpid(), signal.SIGTERM)

    handle = model.register_forward_hook(count)
    with pytest.raises(SystemExit):
        trained(model, images[0], resume=resume)
    handle.remove()
    assert len(seen) == step
    assert capsys.readouterr().err == f"seam: stopped at step {step}; the same command goes on from there\n"
    model = network()
    assert rows(trained(model, images[0], resume=resume)) == rows(expected)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters(), strict=True))


def test_without_a_file_it_still_says_so(images, capsys, command):
    with pytest.raises(SystemExit):
        trained(network(), images[0], live=lambda step, **m: os.kill(os.getpid(), signal.SIGTERM))
    assert capsys.readouterr().err == "seam: stopped at step 1; no checkpoint of it was written\n"


def test_in_a_program_of_the_users_ctrl_c_stays_what_it_is(images, tmp_path, capsys):
    resume = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(network(), images[0], resume=resume, live=lambda step, **m: os.kill(os.getpid(), signal.SIGINT))
    assert resume.exists() and "goes on from there" in capsys.readouterr().err


def test_outside_of_the_main_thread_and_with_ignored_signals_nothing_is_changed():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop.Stop():
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, before)
    found = []

    def enter():
        with stop.Stop():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.SIG_DFL]


def test_a_step_that_does_not_end_cannot_hold_the_process():
    code = (
        "import time; from seam.training.stop import *; exit_within(1.0)\n"
        "with Stop():\n print('on', flush=True)\n while True: time.sleep(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "on\n"
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and time.monotonic() - start < 30
    assert said == "seam: stopped; the same command goes on from its checkpoint\n"
