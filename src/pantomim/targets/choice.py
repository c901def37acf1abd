"""All that can be predicted: tokens, pixels, histograms of gradients, features of a teacher."""

from typing import Annotated

from pantomim.core.frozen import KIND
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

TargetConfig = Annotated[TokenTargetConfig | PixelTargetConfig | HOGTargetConfig | FeatureTargetConfig, KIND]
