"""All that can be predicted where a method leaves the choice: tokens or pixels."""

from typing import Annotated

from pantomim.frozen import KIND
from pantomim.nn.vit import EncoderConfig
from pantomim.targets.rgb import RGBTarget, RGBTargetConfig
from pantomim.targets.tokens import TokenTarget, TokenTargetConfig

TargetConfig = Annotated[TokenTargetConfig | RGBTargetConfig, KIND]


def build_target(config: TokenTargetConfig | RGBTargetConfig, encoder: EncoderConfig) -> TokenTarget | RGBTarget:
    """The target for an encoder's patches and channels."""
    if isinstance(config, TokenTargetConfig):
        return config.build(encoder)
    return config.build(encoder.patch_size, encoder.mean, encoder.std)
