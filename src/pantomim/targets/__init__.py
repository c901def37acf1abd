"""All that can be predicted, in one tuple: tokens, pixels, histograms of gradients, features of a teacher."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pantomim.core.frozen import KIND
from pantomim.targets.features import FeatureTargetConfig
from pantomim.targets.hog import HOGTargetConfig
from pantomim.targets.pixels import PixelTargetConfig
from pantomim.targets.tokens import TokenTargetConfig

TARGETS = (TokenTargetConfig, PixelTargetConfig, HOGTargetConfig, FeatureTargetConfig)  # the only list

if TYPE_CHECKING:
    TargetConfig = Any  # one of the above; a type checker reads no tuple
else:
    TargetConfig = Annotated[Union[TARGETS], KIND]  # noqa: UP007  (made of a tuple)
