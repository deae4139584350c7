"""PyTorch networks as peers."""

import torch


def randomized(model, seed=0):
    """The network with random batch statistics, affine parameters and biases; None goes on with torch's state."""
    if seed is not None:
        torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
        elif getattr(module, "bias", None) is not None:
            module.bias.data.normal_(0, 0.1)
    return model.eval()
