"""AdamW or Muon: the learning rate is a function of the step, gradients are clipped, non-finite ones skipped.

Nothing here waits for the device: the finite check stays a tensor, which the fused optimizer reads there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffpipe.config import Config
from diffpipe.errors import UserError
from diffpipe.interfaces import Phase, Projects
from diffpipe.train.distributed import Communicator
from diffpipe.train.muon import Muon, hidden_matrices
from diffpipe.train.parallel import full_tensor, trainable_parameters


class OptimizerConfig(Config):
    """AdamW (Loshchilov & Hutter 2019) or Muon, and the learning rate's schedule."""

    kind: Literal["adamw", "muon"] = "adamw"
    """adamw: for all parameters. muon (Jordan et al. 2024): the weights of linear layers within the networks' blocks
    get orthogonalized updates, and with muon_convolutions those of convolutions. AdamW trains the rest: embeddings,
    norms, biases, and the layers before and after the blocks."""
    lr: float = Field(default=2e-4, gt=0)
    """The learning rate after the warm-up. The default is that of Ho et al. 2020."""
    lr_factors: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factor on the learning rate for a network of this name, such as {discriminator: 4} (Heusel et al. 2017)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay per step of AdamW's averages of the gradient and of its square. GANs often take [0.0, 0.99]."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the denominator of AdamW's update."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, times the learning rate at each step."""
    weight_decay_on: Literal["all", "matrices"] = "all"
    """Parameters that the weight decay shrinks. matrices: the weights of linear and convolution layers, without biases,
    norms and embeddings."""
    muon_lr: float | None = Field(default=None, gt=0)
    """muon: the learning rate of these matrices after the warm-up; null: lr. Their updates are scaled to the size of
    AdamW's, so that AdamW's learning rate and weight decay fit (Liu et al. 2025, "Muon is scalable")."""
    muon_convolutions: bool = False
    """muon: convolutions within the blocks, too, each a matrix of one row for each output channel. A UNet is made of
    them."""
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)
    """muon: decay per step of its average of the gradient."""
    warmup: int = Field(default=1000, ge=0)
    """Steps over which the learning rate rises linearly from zero."""
    decay: Literal["constant", "cosine", "inverse_sqrt"] = "constant"
    """The learning rate after the warm-up: constant; along half a cosine down to zero at train.steps (cosine); or as
    1 / sqrt(step) from decay_after on (inverse_sqrt, Karras et al. 2024, eq. 67)."""
    decay_after: int = Field(default=70_000, ge=1)
    """inverse_sqrt: the last step with the whole learning rate. It does not depend on train.steps."""
    clip: float = Field(default=1.0, gt=0)
    """The largest norm of an update's gradient; a longer gradient is scaled down to it."""

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> OptimizerConfig:
        for key in ("muon_lr", "muon_convolutions", "muon_momentum"):
            if self.kind != "muon" and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is for kind=muon, and the kind is {self.kind}; leave it out")
        return self

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, …, steps − 1."""
        lr = self.lr * min(1.0, (step + 1) / max(self.warmup, 1))
        if self.decay == "cosine":
            progress = max(0, step - self.warmup) / max(1, steps - self.warmup)
            lr *= 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        elif self.decay == "inverse_sqrt":
            lr /= math.sqrt(max(1.0, step / self.decay_after))
        return lr


class Optimizer:
    """The optimizer of the phases that train the same networks.

    networks: these networks by name, which gives each its factor on the learning rate. scaled: whether the loss is
    scaled, as fp16 needs. updates_per_step: how many updates it makes in a step, on average, lazy phases included. The
    config's learning rate and betas are those of one update a step. With more of them, the learning rate is multiplied
    by c, the inverse of their number, and the betas are raised to c. So a step moves the weights, and decays the
    moments, as far as before (Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN", appendix B,
    where c is k / (k + 1)). comm: the processes that share Muon's work.

    A non-finite gradient changes no weight, and `step` returns its norm. Under DDP and FSDP it is the norm of the
    reduced gradient, so all ranks skip the same steps.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        networks: Mapping[str, nn.Module],
        *,
        scaled: bool,
        updates_per_step: float = 1.0,
        comm: Communicator = Communicator(),  # noqa: B008 (frozen)
    ):
        self.config = config
        self.parameters = [p for net in networks.values() for p in trainable_parameters(net)]
        beta1, beta2, momentum = (beta ** (1 / updates_per_step) for beta in (*config.betas, config.muon_momentum))
        find = partial(hidden_matrices, convolutions=config.muon_convolutions)
        matrices = {name: find(net) if config.kind == "muon" else [] for name, net in networks.items()}
        groups = [(name, group) for name, net in networks.items() for group in _groups(net, matrices[name], config)]
        factors = {name: config.lr_factors.get(name, 1.0) / updates_per_step for name in networks}
        self.adamw = torch.optim.AdamW(
            [group for _, group in groups],
            lr=config.lr,
            betas=(beta1, beta2),
            eps=config.eps,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self._updates: list[tuple[Any, list[float]]] = [(self.adamw, [factors[name] for name, _ in groups])]
        if config.kind == "muon":
            named = [(name, {"params": params}) for name, params in matrices.items() if params]
            if not named:
                layers = "linear and convolution" if config.muon_convolutions else "linear"
                more = "" if config.muon_convolutions else ", or optimizer.muon_convolutions=true for a UNet"
                raise UserError(
                    f"optimizer.kind=muon is for the weights of {layers} layers in a network's blocks, and there are "
                    f"none in {' and '.join(networks)}; set optimizer.kind=adamw{more}"
                )
            decay = config.weight_decay
            muon = Muon([group for _, group in named], momentum=momentum, weight_decay=decay, comm=comm)
            scale = (config.muon_lr or config.lr) / config.lr
            self._updates.append((muon, [scale * factors[name] for name, _ in named]))
        self.projecting = [net for net in networks.values() if isinstance(net, Projects)]
        device = self.parameters[0].device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)  # pyright: ignore[reportPrivateImportUsage]

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of `loss` to the gradients of the parameters."""
        # A non-finite loss can have a finite gradient: as NaN it reaches every rank with the reduction.
        loss = loss * torch.where(torch.isfinite(loss.detach()), 1.0, torch.nan)
        self.scaler.scale(loss).backward()

    def step(self, lr: float) -> Float[Tensor, ""]:
        """Clip and update, project the networks that ask for it, and clear the gradients.

        Returns the gradient's norm before clipping, on the device.
        """
        for optimizer, factors in self._updates:
            for group, factor in zip(optimizer.param_groups, factors, strict=True):
                group["lr"] = lr * factor
            self.scaler.unscale_(optimizer)
        norm = full_tensor(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip, foreach=True))
        finite = torch.isfinite(norm)
        for optimizer, _ in self._updates:
            # Where found_inf is 1, AdamW's fused kernel and our Muon leave parameters and moments unchanged.
            optimizer.found_inf = (~finite).float()
            optimizer.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        for net in self.projecting:
            net.after_step(finite)
        self.zero_grad()
        return norm.detach()

    def zero_grad(self) -> None:
        """Clear the gradients."""
        for optimizer, _ in self._updates:
            optimizer.zero_grad(set_to_none=True)

    def state(self, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
        """The state's tensors, named `parameter.moment`; loading writes into them. names: the parameters' names."""
        if not self.adamw.state:
            self._allocate()
        tensors = {
            f"{names[p]}.{key}": value
            for p in self.parameters
            for optimizer, _ in self._updates
            for key, value in optimizer.state.get(p, {}).items()
            if isinstance(value, Tensor)
        }
        if self.scaler.is_enabled():
            tensors["scale"], tensors["growth_tracker"] = self._scaler_state()
        return tensors

    def _allocate(self) -> None:
        """Allocate AdamW's moments, as its first step does: take a step that changes nothing, at count zero."""
        for p in [p for group in self.adamw.param_groups for p in group["params"]]:
            p.grad = torch.zeros_like(p)
        self.adamw.found_inf = torch.ones((), device=self.parameters[0].device)  # pyright: ignore[reportAttributeAccessIssue]
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        for state in self.adamw.state.values():
            state["step"].zero_()

    def _scaler_state(self) -> tuple[Tensor, Tensor]:
        if self.scaler._scale is None:
            self.scaler._lazy_init_scale_growth_tracker(self.parameters[0].device)
        assert self.scaler._scale is not None
        assert self.scaler._growth_tracker is not None
        return self.scaler._scale, self.scaler._growth_tracker


def build_optimizers(
    config: OptimizerConfig,
    phases: Sequence[Phase],
    nets: Mapping[str, nn.Module],
    *,
    scaled: bool,
    comm: Communicator = Communicator(),  # noqa: B008 (frozen)
) -> dict[tuple[str, ...], Optimizer]:
    """One optimizer for the phases that train the same networks, by the names of these networks.

    scaled: see `Optimizer`. Raises UserError where the config names a network that is not there.
    """
    if unknown := config.lr_factors.keys() - nets.keys():
        raise UserError(
            f"optimizer.lr_factors names {', '.join(sorted(unknown))}, and this stage's networks are {', '.join(nets)}"
        )
    updates = {
        trains: 1.0 + sum(1 / phase.every for phase in phases if phase.trains == trains and phase.lazy)
        for trains in dict.fromkeys(phase.trains for phase in phases)
    }
    return {
        trains: Optimizer(config, {name: nets[name] for name in trains}, scaled=scaled, updates_per_step=n, comm=comm)
        for trains, n in updates.items()
    }


def _groups(net: nn.Module, left_out: Sequence[Tensor], config: OptimizerConfig) -> list[dict[str, Any]]:
    """The network's parameters without those that are left out, in groups of one weight decay."""
    others = {*left_out}
    parameters = [p for p in trainable_parameters(net) if p not in others]
    if config.weight_decay_on == "all":
        return [{"params": parameters}]
    own = [(module, p) for module in net.modules() for p in module.parameters(recurse=False)]
    matrices = {p for module, p in own if p.ndim >= 2 and not isinstance(module, nn.Embedding)}
    parts = ([p for p in parameters if (p in matrices) is chosen] for chosen in (True, False))
    decays = (config.weight_decay, 0.0)
    return [{"params": part, "weight_decay": decay} for part, decay in zip(parts, decays, strict=True) if part]
