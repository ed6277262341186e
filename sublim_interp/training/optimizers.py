"""Every optimizer by name: how it is made, and what it keeps of each parameter."""

import torch

from sublim_interp.training.settings import Optimization


def make_optimizer(parameters: list[torch.nn.Parameter], o: Optimization) -> torch.optim.Optimizer:
    if o.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=o.lr, momentum=o.beta1)
    betas = (o.beta1, o.beta2)
    if o.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=o.lr, betas=betas, weight_decay=o.weight_decay, fused=True)
    return torch.optim.Adam(parameters, lr=o.lr, betas=betas, fused=True)
