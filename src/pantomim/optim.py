"""Which weights are updated, and how: groups with decay and rate, LARS, and schedules as functions of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pantomim.core.schedule import half_cosine
from pantomim.nn.lora import add_lora
from pantomim.nn.vit import Encoder

# A group as torch.optim takes it: "params", "param_names", "weight_decay" and "lr_scale" (1 unless layers decay);
# whoever sets the rate sets `group["lr"] = lr * group["lr_scale"]`.
Group = dict[str, Any]

TOKENS = frozenset({"cls_token", "reg_token", "mask_token"})


def scaled_lr(base_lr: float, batch_size: int) -> float:
    """The learning rate in use, for a rate given per 256 images. Paper: He et al. 2022, appendix A.1 (Goyal's rule)."""
    return base_lr * batch_size / 256


@dataclass(frozen=True)
class Schedule:
    """Learning rates as functions of the step: a warm-up from `start` to `base`, then a way down to `minimum`.

    Steps, warm-up and total share a unit: optimizer steps, or epochs with their fractions.
    """

    base: float
    minimum: float
    warmup: float
    total: float
    start: float = 0.0

    def mae(self, step: float) -> float:
        """Linear warm-up, whose next step has the base rate; then half a cosine down to the minimum, where it stays.

        Source: the MAE authors' `util/lr_sched.py`.
        """
        if not 0 <= self.warmup < self.total:
            raise ValueError(
                f"Schedule.warmup must be in [0, total); got {self.warmup} of {self.total}. Train longer, or warm up "
                f"shorter."
            )
        if step < self.warmup:
            return self._warming(step, self.warmup)
        return half_cosine(self.base, self.minimum, min((step - self.warmup) / (self.total - self.warmup), 1.0))

    def beit(self, step: float) -> float:
        """As `mae`, with the base rate in the last step of the warm-up already.

        Source: BEiT's `utils.py` (and CAE's); steps are optimizer steps.
        """
        return self._warming(step, max(self.warmup - 1, 1)) if step < self.warmup else self.mae(step)

    def drop(self, step: float, at: float = 7 / 8) -> float:
        """Warm-up as in `mae`, then the base rate; the minimum once the share `at` of the total is over.

        Source: SimMIM's `configs/vit_base__800ep`: a tenth from epoch 700 of 800 on.
        """
        if step < self.warmup:
            return self.mae(step)
        # a step that the share falls on exactly is the first with the minimum, whatever the product is rounded to
        return self.base if step < at * self.total - 1e-9 * self.total else self.minimum

    def poly(self, step: float) -> float:
        """Linear warm-up whose last step has the base rate, as has the next; then linearly to the minimum at the end.

        Source: mmengine's LinearLR and PolyLR of power 1, as in mmsegmentation 1.x (ColorMAE); steps are optimizer
            steps.
        """
        if step < self.warmup:
            return self.beit(step)
        left = 1.0 - (step - self.warmup) / max(self.total - self.warmup - 1, 1)
        return self.minimum + (self.base - self.minimum) * max(left, 0.0)

    def mmcv(self, step: float) -> float:
        """Linearly from base to minimum, which only a step after the last would have; a share of it in the warm-up.

        In the warm-up the share rises linearly from `start / base` to 1.

        Source: mmcv 1.x's PolyLrUpdaterHook of power 1 with linear warm-up (segmentation of BEiT, CAE and dBOT).
        """
        rate = self.minimum + (self.base - self.minimum) * max(1.0 - step / self.total, 0.0)
        if step >= self.warmup:
            return rate
        return rate * (1.0 - (1.0 - step / self.warmup) * (1.0 - self.start / self.base))

    def _warming(self, step: float, last: float) -> float:
        return self.start + (self.base - self.start) * step / last


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    *,
    decay_tokens: bool = True,
    decay_mask_token: bool | None = None,
    decay_vectors: bool = False,
    spared: tuple[str, ...] = (),
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> list[Group]:
    """The trainable parameters of a module in groups without and with weight decay, and by the scale of their rate.

    Parameters of at most one dimension (biases and norms) are not decayed, unless by `decay_vectors` (MoCo v3). Tokens
    and learned positions are, as in the authors' PyTorch code, unless `decay_tokens` is off (mmpretrain's port); the
    mask token may be stated apart (BEiT decays it alone). Others may be `spared` by the end of their names.

    Source: the MAE authors' `main_pretrain.py` with timm 0.3.2; BEiT's `optim_factory.py`; MoCo v3's `main_moco.py`.
    """
    apart = frozenset(spared) | (frozenset() if decay_tokens else TOKENS | {"pos_embed"})
    if decay_mask_token is not None:
        apart = apart - {"mask_token"} if decay_mask_token else apart | {"mask_token"}
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = (parameter.ndim > 1 or decay_vectors) and name.rpartition(".")[2] not in apart
        scale, decay = lr_scale(name), weight_decay if decayed else 0.0
        empty: Group = {"params": [], "param_names": [], "weight_decay": decay, "lr_scale": scale}
        group = groups.setdefault((scale, decay), empty)
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def layer_scale(depth: int, decay: float) -> Callable[[str], float]:
    """By a parameter's name, what scales its rate: the further a layer is from the head, the slower it learns.

    With `depth` blocks, layer i is scaled by `decay ** (depth + 1 - i)`: of whatever is called an encoder, tokens,
    positions and patch projection are layer 0, block j is layer j + 1, and all else is layer depth + 1: norms and heads
    behind the blocks, and a table of relative positions that the blocks share.

    Source: the MAE authors' `util/lr_decay.py`; BEiT's `optim_factory.py`; the `layer_decay_optimizer_constructor.py`
        of BEiT's, CAE's and dBOT's segmentation, which means to spare tokens and positions and does not.
    """

    def scale(name: str) -> float:
        _, _, inner = f".{name}".partition(".encoder.")
        path = inner.split(".")
        if not inner or path[0] in {"norm", "rel_pos_bias"}:
            return 1.0
        layer = int(path[1]) + 1 if path[0] == "blocks" else 0
        return float(decay ** (depth + 1 - layer))

    return scale


def limit_training(
    encoder: nn.Module | None, freeze_blocks: int, *, rank: int = 0, alpha: float = 8.0, mlp: bool = False
) -> None:
    """Freeze the first blocks of an encoder, and what lies before them; with a rank, train nothing of it but LoRA.

    Frozen blocks drop no path (partial fine-tuning), and a table of relative positions that all blocks share is frozen
    with them. With all blocks the final norm is frozen, too: a head alone is trained. LoRA is of attention in the
    blocks that are not frozen, and of their MLPs if asked for.

    Paper: He et al. 2022, section 4.3. Deviation: without stochastic depth in frozen blocks, of which it says nothing.
    """
    if not freeze_blocks and not rank:
        return
    if not isinstance(encoder, Encoder):
        raise ValueError(
            f"OptimConfig.freeze_blocks and optim.lora.rank must be 0 for a method without an encoder; got "
            f"{freeze_blocks} and {rank}. Leave them out."
        )
    if freeze_blocks > encoder.depth:
        raise ValueError(
            f"OptimConfig.freeze_blocks must be at most the blocks of the encoder; got {freeze_blocks}, and it has "
            f"{encoder.depth} blocks. Choose fewer."
        )
    if rank and freeze_blocks == encoder.depth:
        raise ValueError(
            f"optim.lora.rank must be 0 where every block is frozen, as it is of blocks that are trained; got {rank} "
            f"with optim.freeze_blocks {freeze_blocks}. Freeze fewer, or leave one of the two out."
        )
    for name, parameter in encoder.named_parameters():
        owner, _, rest = name.partition(".")
        later = owner == "norm" or (owner == "blocks" and int(rest.split(".")[0]) >= freeze_blocks)
        if rank or freeze_blocks == encoder.depth or not later:
            parameter.requires_grad_(False)
    blocks: Any = encoder.blocks
    for block in blocks[:freeze_blocks]:
        block.drop_path.rate = 0.0
    for block in blocks[freeze_blocks:] if rank else ():
        for part in (block.attn, block.mlp) if mlp else (block.attn,):
            add_lora(part, rank, alpha)


class LARS(Optimizer):
    """Momentum SGD whose step, tensor by tensor, is proportional to the norm of the weights; for very large batches.

    Weight decay and trust ratio apply to tensors of more than one dimension; the others get plain momentum SGD. The
    momentum accumulates the scaled gradient, and the rate multiplies afterwards.

    Args:
        weight_decay: Added to the gradient as a multiple of the weight.
        trust_coefficient: Step over weight norm, before the learning rate.

    Paper: You et al. 2017, arXiv:1708.03888; as in the MAE authors' `util/lars.py` (He et al. 2022, Table 10).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        given = {"weight_decay": weight_decay, "momentum": momentum, "trust_coefficient": trust_coefficient}
        super().__init__(params, {"lr": lr, **given})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim > 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    update = update * _trust_ratio(parameter, update, group["trust_coefficient"])
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                parameter.add_(momentum, alpha=-group["lr"])


def _trust_ratio(parameter: Tensor, update: Tensor, coefficient: float) -> Tensor:
    """Coefficient x norm of the weights over norm of the update; 1 where one of them is zero. No device sync."""
    weight_norm, update_norm = parameter.norm(), update.norm()
    usable = (weight_norm > 0) & (update_norm > 0)
    return torch.where(usable, coefficient * weight_norm / update_norm, torch.ones_like(weight_norm))
