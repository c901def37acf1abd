"""All pre-training methods, in one tuple."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pantomim.core.frozen import KIND
from pantomim.methods.beit import BEiTConfig
from pantomim.methods.cae import CAEConfig
from pantomim.methods.cmt_mae import CMTMAEConfig
from pantomim.methods.dbot import DBOTConfig
from pantomim.methods.dvae import DVAEConfig
from pantomim.methods.ijepa import IJEPAConfig
from pantomim.methods.mae import MAEConfig
from pantomim.methods.milan import MILANConfig
from pantomim.methods.mocov3 import MoCoV3Config
from pantomim.methods.segment import SegmentConfig
from pantomim.methods.supervised import SupervisedConfig
from pantomim.methods.vqkd import VQKDConfig

METHODS = (  # the only list
    MAEConfig,
    BEiTConfig,
    CAEConfig,
    DBOTConfig,
    MILANConfig,
    CMTMAEConfig,
    DVAEConfig,
    IJEPAConfig,
    MoCoV3Config,
    SegmentConfig,
    SupervisedConfig,
    VQKDConfig,
)

if TYPE_CHECKING:
    MethodConfig = Any  # one of the above; a type checker reads no tuple
else:
    MethodConfig = Annotated[Union[METHODS], KIND]  # noqa: UP007  (made of a tuple)
