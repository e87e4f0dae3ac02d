"""VGG11 with batch normalisation for small images."""

import torch
from torch import Tensor, nn

from vgg_ddp.convolution import Conv3x3

# Configuration A of "Very Deep Convolutional Networks" (Simonyan and Zisserman, 2014): output channels, "M" = max pool.
LAYERS: tuple[int | str, ...] = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(nn.Module):
    """VGG11 whose `features` have the names and shapes of `torchvision.models.vgg11_bn().features`.

    In place of VGG's three fully connected layers, made for 224 x 224 pixels, it has one linear layer on the average of
    the last feature map, which is 1 x 1 for 32 x 32 pixels. 9.2 million parameters for 10 classes.
    """

    def __init__(self, num_classes: int, batch_norm: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(*_feature_layers(batch_norm))
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], with_head: bool) -> None:
        """Take up the tensors of another VGG11: all of them, or all but those of the classifier."""
        chosen = {name: tensor for name, tensor in tensors.items() if with_head or name.startswith("features.")}
        self.load_state_dict(chosen, strict=with_head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalised images (N, 3, H, W), H and W at least 32."""
        features = self.features(images)
        return self.classifier(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _feature_layers(batch_norm: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    in_channels = 3
    for item in LAYERS:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        layers.append(Conv3x3(in_channels, item))
        if batch_norm:
            layers.append(nn.BatchNorm2d(item))
        layers.append(nn.ReLU(inplace=True))
        in_channels = item
    return layers


def build_model(num_classes: int, seed: int, batch_norm: bool = True) -> VGG11:
    """VGG11 with weights that depend on the seed alone, in channels_last memory format."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = VGG11(num_classes, batch_norm)
    return model.to(memory_format=torch.channels_last)
