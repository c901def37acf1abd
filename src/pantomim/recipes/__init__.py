"""Recipes: named starting points of a run, and bare methods that the data complete."""

from pantomim.recipes.beit import BEIT
from pantomim.recipes.cae import CAE, CAE_98
from pantomim.recipes.clip import CLIP_MAE, CLIP_MIM
from pantomim.recipes.cmt_mae import CMT_MAE
from pantomim.recipes.colormae import COLOR_MAE
from pantomim.recipes.data2vec import DATA2VEC
from pantomim.recipes.dbot import DBOT, DBOT_CLIP
from pantomim.recipes.dvae import DVAE
from pantomim.recipes.ijepa import IJEPA
from pantomim.recipes.mae import MAE
from pantomim.recipes.maskfeat import MASKFEAT
from pantomim.recipes.milan import MILAN
from pantomim.recipes.mocov3 import MOCO_V3
from pantomim.recipes.prepare import Prepared, prepare
from pantomim.recipes.simmim import SIMMIM
from pantomim.recipes.supervised import SUPERVISED
from pantomim.recipes.vqkd import VQKD

__all__ = ["BARE_METHODS", "BARE_TOKENIZERS", "RECIPES", "TOKENIZER_RECIPES", "Prepared", "prepare"]

FAMILIES = (  # the only list; one line a paper
    MAE,
    *COLOR_MAE,
    BEIT,
    *(CAE, CAE_98),
    *(DBOT, DBOT_CLIP),
    MASKFEAT,
    SIMMIM,
    DATA2VEC,
    *(CLIP_MIM, CLIP_MAE),
    MILAN,
    CMT_MAE,
    IJEPA,
    MOCO_V3,
    SUPERVISED,
    DVAE,
    VQKD,
)
RECIPES = tuple(recipe for family in FAMILIES if not family.tokenizer for recipe in family.recipes)
TOKENIZER_RECIPES = tuple(recipe for family in FAMILIES if family.tokenizer for recipe in family.recipes)
BARE_METHODS = {family.bare: family for family in FAMILIES if family.bare and not family.tokenizer}
BARE_TOKENIZERS = {family.bare: family for family in FAMILIES if family.bare and family.tokenizer}
