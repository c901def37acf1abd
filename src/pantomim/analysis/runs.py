"""A finished run as the method that it trained, from its folder alone."""

from pathlib import Path

import torch

from pantomim.config import Pretrain, from_yaml
from pantomim.formats.files import frozen_hashes, key_report, other_parts
from pantomim.formats.native import load_encoder_folder, load_predictor, read_frozen
from pantomim.methods.beit import BEiT, BEiTConfig
from pantomim.methods.cae import CAE, CAEConfig


def load_run(run: str | Path) -> BEiT | CAE:
    """The method of a finished run of BEiT or CAE, in evaluation mode; see `reconstructions.load_method` for MAE.

    A tokenizer is loaded from where the run had it.

    Raises:
        ValueError: if the run is of another method, is not finished, its files are damaged, or its tokenizer or guide
            is not to be had.
    """
    run = Path(run)
    config = from_yaml(Pretrain, run / "config.yaml").method
    if not isinstance(config, BEiTConfig | CAEConfig):
        raise ValueError(f"load_run.run must be a run of beit or cae; got {run}, a run of {config.kind}.")
    config.guide.check_kept(run)
    encoder, weights = load_encoder_folder(run), load_predictor(run)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten; nobody else's draws may change
        method = config.build()
    method.encoder.load_state_dict(encoder.state_dict())
    method.reset()
    ours = method.exports()["predictor"]
    if report := key_report(ours, weights):
        raise ValueError(
            f"{run / 'predictor.safetensors'} must hold what config.yaml describes; got {report}. "
            f"Copy the folder again, or give the tokenizer that it was trained with."
        )
    stated = read_frozen(run)
    if stated is not None and (different := other_parts(frozen_hashes(method), stated)):
        raise ValueError(
            f"{run} must be looked at with the tokenizer that it was trained with; got another {different}. "
            f"Put the files back that config.yaml names."
        )
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(weights[name])
    return method.eval()
