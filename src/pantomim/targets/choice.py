"""All that can be predicted: tokens, pixels."""

from typing import Annotated

from pantomim.frozen import KIND
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

TargetConfig = Annotated[TokenTargetConfig | PixelTargetConfig, KIND]
