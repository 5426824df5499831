"""Memory that runs out, as torch, numpy and Python really say it."""

import multiprocessing
import subprocess
import sys

import numpy as np
import pytest
import torch
from engines import REPOSITORY, environment
from torch import nn

from seam.data.image_sets import TensorSet
from seam.errors import SeamError
from seam.runtime.memory import enough_memory, exhausted
from seam.runtime.meter import Meter
from seam.training.evaluate import evaluate
from seam.training.loop import fit
from seam.training.optimizers import Group

CPU = torch.device("cpu")
TOO_MANY = 10**15


class Greedy(nn.Module):
    """Asks for more memory than there is once it has seen three batches."""

    def __init__(self):
        super().__init__()
        self.head, self.fine = nn.Linear(16, 2), 3

    def get_classifier(self):
        return self.head

    def forward(self, x):
        self.fine -= 1
        return self.head(x.flatten(1)) + (torch.zeros(TOO_MANY).sum() if self.fine < 0 else 0)


@pytest.mark.parametrize(
    "ask", [lambda: torch.zeros(TOO_MANY), lambda: np.zeros(TOO_MANY), lambda: bytearray(TOO_MANY)]
)
def test_what_libraries_say_is_understood(ask):
    with pytest.raises((RuntimeError, MemoryError)) as said:
        ask()
    assert exhausted(said.value) == "out of memory"
    named = pytest.raises(SeamError, match=r"^job: out of memory; lower x.batch_size \(now 9\), e.g. to 4$")
    with named, enough_memory("job", "x.batch_size", 9):
        ask()


@pytest.mark.parametrize("act", [lambda pipe: pipe.recv(), lambda pipe: pipe.send(1)], ids=["EOF", "broken pipe"])
def test_a_pipe_that_was_cut_is_a_reader_that_was_killed(act):
    """Which of its errors a killed loader process causes is a matter of chance."""
    ours, its = multiprocessing.Pipe()
    its.close()
    with pytest.raises(SeamError, match="^job: a process that reads images was killed"), enough_memory("job", "n", 2):
        act(ours)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("job", "x.batch_size", 9):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.fixture
def images():
    labels = torch.arange(80) % 2
    return TensorSet(torch.zeros(80, 4, 4, 1, dtype=torch.uint8), labels, ["a", "b"], [0.5], [0.5])


def test_a_training_and_an_evaluation_say_what_to_lower(images):
    model = Greedy()
    groups = [Group(list(model.parameters()), 0.1, "sgd", 0.0, 0.9)]
    with pytest.raises(SeamError, match=r"^pretrain m: out of memory; lower pretrain.batch_size \(now 8\), e.g. to 4$"):
        fit(
            *(model, lambda x, y, done: (nn.functional.cross_entropy(model(x), y), {}), images),
            *(1, 8, groups, 0, CPU, Meter(CPU)),
            label="pretrain m",
            section="pretrain",
        )
    assert model.fine < 0
    with pytest.raises(SeamError, match=r"^evaluate: out of memory; lower the batch size \(now 40\), e.g. to 20$"):
        evaluate(model, images, 40, CPU)


def test_a_command_ends_with_one_message():
    script = f"""
import sys, torch, seam.cli
seam.cli.app = lambda: torch.zeros({TOO_MANY})
seam.cli.main()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment(REPOSITORY), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "seam: error: out of memory; smaller batches or images need less\n"
