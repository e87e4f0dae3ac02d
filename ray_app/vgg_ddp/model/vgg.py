"""VGG11 with batch normalization for small images."""

from torch import Tensor, nn

# Configuration A of "Very Deep Convolutional Networks" (Simonyan and Zisserman, 2014): output channels, "M" = max pool.
LAYERS: tuple[int | str, ...] = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class VGG11(nn.Module):
    """VGG11 whose `features` have the names and shapes of `torchvision.models.vgg11_bn().features`.

    Instead of VGG's three fully connected layers, made for 224x224 pixels, it has one linear layer on the mean of the
    last feature map, which is 1x1 for 32x32 pixels. 9.2 million parameters for 10 classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*_feature_layers())
        self.classifier = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of normalized images (N, 3, H, W), H and W at least 32."""
        features = self.features(images)
        return self.classifier(features.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _feature_layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    in_channels = 3
    for item in LAYERS:
        if isinstance(item, str):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            convolution = nn.Conv2d(in_channels, item, kernel_size=3, padding=1)
            layers += [convolution, nn.BatchNorm2d(item), nn.ReLU(inplace=True)]
            in_channels = item
    return layers
