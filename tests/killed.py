"""A run that dies in the middle of a step, within the process of the test."""

import torch


class Killed(BaseException):
    """Stands for a kill, within this process."""


def kill_after(step, monkeypatch):
    """The process dies once so many steps are done, saved or not."""
    backward = torch.Tensor.backward
    done = [0]

    def dying(self, *arguments, **named):
        if done[0] == step:
            raise Killed
        done[0] += 1
        backward(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "backward", dying)
