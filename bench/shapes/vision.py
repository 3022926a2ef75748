"""Shapes that read images: classifiers, a detector, segmenters, and images beside text."""

from __future__ import annotations

import torch
import transformers

from bench.shapes.base import ROWS, First, Shape, floats, together, tokens


def vit(layers: int = 4, width: int = 192) -> Shape:
    """A vision transformer."""
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=3,
        intermediate_size=4 * width,
        image_size=64,
        patch_size=16,
        num_labels=100,
    )
    return Shape(
        First(transformers.ViTForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def swin() -> Shape:
    """A Swin classifier: attention in windows that shift, and patches that merge."""
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4, num_labels=100
    )
    config._attn_implementation = "eager"  # torch's exporter cannot decompose its views behind the fused attention
    return Shape(
        First(transformers.SwinForImageClassification(config), "pixel_values"), floats("pixel_values", 2, 3, 64, 64)
    )


def convnext() -> Shape:
    """A ConvNeXt classifier."""
    config = transformers.ConvNextConfig(
        hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2], num_labels=100, image_size=64
    )
    return Shape(
        First(transformers.ConvNextForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def resnet() -> Shape:
    """A ResNet classifier with bottlenecks."""
    config = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], num_labels=100
    )
    return Shape(
        First(transformers.ResNetForImageClassification(config), "pixel_values"), floats("pixel_values", 4, 3, 64, 64)
    )


def detr(layers: int = 2, width: int = 64) -> Shape:
    """A DETR detector: a ResNet, an encoder, object queries in a decoder; class scores and boxes."""
    backbone = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=width,
        num_queries=10,
        num_labels=20,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
    )
    return Shape(
        First(transformers.DetrForObjectDetection(config), "pixel_values", outputs=2),
        floats("pixel_values", 2, 3, 64, 64),
    )


def segformer() -> Shape:
    """A SegFormer: a pyramid of overlapping patches, attention to fewer keys, a decoder that resizes."""
    config = transformers.SegformerConfig(
        num_encoder_blocks=3,
        depths=[1, 1, 1],
        sr_ratios=[4, 2, 1],
        hidden_sizes=[16, 32, 64],
        patch_sizes=[7, 3, 3],
        strides=[4, 2, 2],
        num_attention_heads=[1, 2, 4],
        mlp_ratios=[4, 4, 4],
        decoder_hidden_size=64,
        num_labels=20,
    )
    return Shape(
        First(transformers.SegformerForSemanticSegmentation(config), "pixel_values"),
        floats("pixel_values", 2, 3, 64, 64),
    )


class DoubleConvolution(torch.nn.Sequential):
    """Convolution, batch norm and ReLU, twice."""

    def __init__(self, before: int, after: int) -> None:
        layers: list[torch.nn.Module] = []
        for width in (before, after):
            layers += [torch.nn.Conv2d(width, after, 3, padding=1, bias=False), torch.nn.BatchNorm2d(after)]
            layers += [torch.nn.ReLU()]
        super().__init__(*layers)


class UNet(torch.nn.Module):
    """Down by pooling, up by transposed convolutions, with a skip connection at every size."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), labels: int = 8) -> None:
        super().__init__()
        self.down = torch.nn.ModuleList(
            DoubleConvolution(*pair) for pair in zip((3, *widths[:-1]), widths, strict=True)
        )
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.rise = torch.nn.ModuleList(torch.nn.ConvTranspose2d(wide, narrow, 2, stride=2) for wide, narrow in pairs)
        self.up = torch.nn.ModuleList(DoubleConvolution(2 * narrow, narrow) for _, narrow in pairs)
        self.head = torch.nn.Conv2d(widths[0], labels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores for each pixel."""
        skips = [self.down[0](image)]
        for block in self.down[1:]:
            skips.append(block(torch.nn.functional.max_pool2d(skips[-1], 2)))
        x = skips.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([skips.pop(), rise(x)], dim=1))
        return self.head(x)


def unet() -> Shape:
    """A U-Net over three sizes."""
    return Shape(UNet(), floats("image", 2, 3, 32, 32))


class Towers(torch.nn.Module):
    """CLIP's two towers: unit embeddings of texts and of images."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of the texts and of the images."""
        found = self.model(input_ids=input_ids, pixel_values=pixel_values)
        return found.text_embeds, found.image_embeds


def clip(layers: int = 2, width: int = 64) -> Shape:
    """A CLIP model, text and image side by side."""
    tower = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "projection_dim": 32,
    }
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 1000, "max_position_embeddings": 16, **tower},
        vision_config={"image_size": 32, "patch_size": 8, **tower},
        projection_dim=32,
    )
    return Shape(
        Towers(transformers.CLIPModel(config)), together(tokens(1000, 12), floats("pixel_values", ROWS, 3, 32, 32))
    )
