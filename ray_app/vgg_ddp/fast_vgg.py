"""VGG11 arranged to learn in few epochs: the same convolutions, widths and pools as `VGG11`, and as such it is stored.

After "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (Jordan, 2024, https://arxiv.org/abs/2404.00498).
"""

from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vgg_ddp.convolution import Conv3x3
from vgg_ddp.model import LAYERS, VGG11

# Follows single batches closely: a short run has no time for long averages.
NORM_MOMENTUM = 0.4
# The classifier begins with weights of standard deviation 1 on 512 features.
LOGIT_SCALE = 1 / 512


class Stage(nn.Module):
    """A convolution, perhaps a pool, batch normalisation without scales, and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, pooled: bool) -> None:
        super().__init__()
        self.convolution = Conv3x3(in_channels, out_channels, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, momentum=NORM_MOMENTUM)
        self.norm.weight.requires_grad_(False)
        self.pooled = pooled

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H, W), or half of H and W."""
        images = self.convolution(images)
        if self.pooled:
            images = F.max_pool2d(images, kernel_size=2)
        return F.relu(self.norm(images), inplace=True)


class FastVGG11(nn.Module):
    """VGG11 whose pools come before normalisation and ReLU, which then work on a quarter of the pixels.

    Batch normalisation learns biases only, and the convolutions have none. With positive scales the place of the pools
    does not change the result: a trained one equals the plain `VGG11` that `to_vgg11` gives.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential()
        in_channels = 3
        for item, following in pairwise((*LAYERS, "")):
            if isinstance(item, int):
                self.features.append(Stage(in_channels, item, pooled=following == "M"))
                in_channels = item
        self.classifier = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W), H and W at least 32."""
        logits: Tensor = self.classifier(self.features(images).mean(dim=(2, 3)))
        return logits * LOGIT_SCALE

    def stages(self) -> list[Stage]:
        return [layer for layer in self.features if isinstance(layer, Stage)]

    def _beside(self, plain: VGG11) -> Iterable[tuple[Stage, nn.Conv2d, nn.BatchNorm2d]]:
        """Each stage with the layers of a plain VGG11 that it stands for."""
        convolutions = [layer for layer in plain.features if isinstance(layer, nn.Conv2d)]
        norms = [layer for layer in plain.features if isinstance(layer, nn.BatchNorm2d)]
        return zip(self.stages(), convolutions, norms, strict=True)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], with_head: bool) -> None:
        """Take up the function of a plain VGG11: all of it, or all but the classifier, whose biases are left out.

        ReLU and pools pass positive factors on: the scales of batch normalisation, which have to be positive, move to
        the filters of the next layer.
        """
        plain = VGG11(len(tensors["classifier.weight"]) if with_head else 1)
        plain.load(tensors, with_head)
        scales = torch.ones(3)
        for stage, convolution, norm in self._beside(plain):
            assert (norm.weight > 0).all()
            stage.convolution.weight.copy_(convolution.weight * scales[:, None, None])
            scales = norm.weight
            stage.norm.bias.copy_(norm.bias / scales)
            assert norm.running_mean is not None and norm.running_var is not None and convolution.bias is not None
            stage.norm.running_mean.copy_(norm.running_mean - convolution.bias)  # type: ignore[union-attr]
            stage.norm.running_var.copy_(norm.running_var)  # type: ignore[union-attr]
        if with_head:
            self.classifier.weight.copy_(plain.classifier.weight * scales / LOGIT_SCALE)

    @torch.no_grad()
    def to_vgg11(self) -> VGG11:
        """The same function as a plain VGG11, with torchvision's names and shapes."""
        plain = VGG11(self.classifier.out_features)
        for stage, convolution, norm in self._beside(plain):
            convolution.weight.copy_(stage.convolution.weight)
            norm.load_state_dict(stage.norm.state_dict())
        # The biases of a new VGG11 are 0.
        plain.classifier.weight.copy_(self.classifier.weight * LOGIT_SCALE)
        return plain


@torch.no_grad()
def build_fast_model(num_classes: int, seed: int) -> FastVGG11:
    """A model whose weights depend on the seed alone, in channels_last memory format.

    All layers but the first begin by passing their input on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastVGG11(num_classes)
    for stage in model.stages()[1:]:
        # As many filters as there are inputs; the rest stay random.
        nn.init.dirac_(stage.convolution.weight[: stage.convolution.in_channels])
    model.classifier.weight.div_(model.classifier.weight.std())
    return model.to(memory_format=torch.channels_last)
