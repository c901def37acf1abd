"""Random draws that are made on the host, while the device is busy."""

import torch
from torch import Tensor


def host_seed(generator: torch.Generator) -> list[int]:
    """A seed for a generator on the CPU, from where this one stands; this one moves on. Nothing waits for a device."""
    if generator.device.type == "cpu":
        return torch.randint(2**63 - 1, (1,), generator=generator).tolist()
    state = generator.get_state().tolist()  # the host keeps it, whatever the device
    torch.rand(1, generator=generator, device=generator.device)
    return state


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from pinned memory, as the copy would otherwise wait for what the device has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
