"""VGG11 rearranged to learn in few epochs: the same convolutions, widths, and pools as `VGG11`, and stored as a VGG11.

Based on "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (Jordan, 2024, https://arxiv.org/abs/2404.00498).
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_ddp.model.vgg import LAYERS, VGG11


class Stage(nn.Module):
    """A convolution, max pooling in some stages, batch normalization without scales, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, pooled: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.norm.weight.requires_grad_(False)
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), or half of H and W."""
        images = self.convolution(images)
        if self.pooled:
            images = F.max_pool2d(images, kernel_size=2)
        return F.relu(self.norm(images), inplace=True)


class FastVGG11(nn.Module):
    """VGG11 with pooling before normalization and ReLU, which then process a quarter of the pixels.

    Batch normalization learns only biases, and the convolutions have none. With positive scales, the position of the
    pools does not change the result: `to_stored` returns an equivalent plain `VGG11`.
    """

    # The classifier's weights start with standard deviation 1, on 512 features.
    logit_scale = 1 / 512

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        in_channels = 3
        for item, following in pairwise((*LAYERS, "")):
            if isinstance(item, int):
                self.features.append(Stage(in_channels, item, pooled=following == "M"))
                in_channels = item
        self.classifier = nn.Linear(512, num_classes, bias=False)
        with torch.no_grad():
            self.classifier.weight.div_(self.classifier.weight.std())

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, 3, H, W), H and W at least 32."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits * self.logit_scale

    def stages(self) -> list[Stage]:
        return [layer for layer in self.features if isinstance(layer, Stage)]

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Initialize all stages except the first as identities: the first `in_channels` filters pass on their input.

        The other filters stay random.
        """
        for stage in self.stages()[1:]:
            nn.init.dirac_(stage.convolution.weight[: stage.convolution.in_channels])

    def _layer_pairs(self, plain: nn.Module) -> Iterable[tuple[Stage, nn.Conv2d, nn.BatchNorm2d]]:
        """Each stage with the corresponding convolution and normalization of a plain VGG11."""
        convolutions = [layer for layer in plain.modules() if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in plain.modules() if isinstance(layer, nn.BatchNorm2d)]
        return zip(self.stages(), convolutions, norms, strict=True)

    @torch.no_grad()
    def to_stored(self) -> VGG11:
        """An equivalent plain VGG11, with torchvision's names and shapes."""
        plain = VGG11(self.classifier.out_features)
        for stage, convolution, norm in self._layer_pairs(plain):
            convolution.weight.copy_(stage.convolution.weight)
            norm.load_state_dict(stage.norm.state_dict())
        # The biases of a new VGG11 are 0.
        plain.classifier.weight.copy_(self.classifier.weight * self.logit_scale)
        return plain

    @torch.no_grad()
    def from_stored(self, stored: nn.Module, with_head: bool) -> None:
        """Take over the weights of a plain VGG11: all except the classifier's biases, or all except the classifier.

        ReLU and pooling commute with positive factors, so the scales of batch normalization move to the filters of the
        next layer.

        Raises:
            ValueError: if a scale is not positive.
        """
        assert isinstance(stored, VGG11)
        scales = torch.ones(3)
        for stage, convolution, norm in self._layer_pairs(stored):
            if not (norm.weight > 0).all():
                raise ValueError("a scale of its batch normalization is not positive; use --recipe classic")
            stage.convolution.weight.copy_(convolution.weight * scales[:, None, None])
            scales = norm.weight
            stage.norm.bias.copy_(norm.bias / scales)
            assert norm.running_mean is not None and norm.running_var is not None and convolution.bias is not None
            stage.norm.running_mean.copy_(norm.running_mean - convolution.bias)  # type: ignore[union-attr]
            stage.norm.running_var.copy_(norm.running_var)  # type: ignore[union-attr]
        if with_head:
            self.classifier.weight.copy_(stored.classifier.weight * scales / self.logit_scale)
