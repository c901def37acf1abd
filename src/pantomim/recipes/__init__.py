"""Recipes: named starting points of a run, and bare methods that the data complete."""

from typing import get_args

from pantomim.recipes.beit import BEIT
from pantomim.recipes.cae import CAE, CAE_98
from pantomim.recipes.clip import CLIP_MAE, CLIP_MIM
from pantomim.recipes.cmt_mae import CMT_MAE
from pantomim.recipes.colormae import COLOR_MAE
from pantomim.recipes.continue_ import CONTINUED
from pantomim.recipes.data2vec import DATA2VEC
from pantomim.recipes.dbot import DBOT, DBOT_CLIP
from pantomim.recipes.dvae import DVAE
from pantomim.recipes.finetune import FINETUNING
from pantomim.recipes.ijepa import IJEPA
from pantomim.recipes.mae import MAE
from pantomim.recipes.maskfeat import MASKFEAT
from pantomim.recipes.milan import MILAN
from pantomim.recipes.mocov3 import MOCO_V3
from pantomim.recipes.prepare import Prepared as Prepared
from pantomim.recipes.prepare import follow as follow
from pantomim.recipes.prepare import prepare as prepare
from pantomim.recipes.recipe import Trained
from pantomim.recipes.segment import SEGMENTING
from pantomim.recipes.simmim import SIMMIM
from pantomim.recipes.supervised import SUPERVISED
from pantomim.recipes.vqkd import VQKD

FAMILIES = (  # the only list: of encoders, of tokenizers, of tasks
    *(MAE, *COLOR_MAE, BEIT, CAE, CAE_98, DBOT, DBOT_CLIP, MASKFEAT, SIMMIM, DATA2VEC, CLIP_MIM, CLIP_MAE, MILAN),
    *(CMT_MAE, IJEPA, MOCO_V3, SUPERVISED, *CONTINUED),
    *(DVAE, VQKD),
    *(*FINETUNING, *SEGMENTING),
)
RECIPES_OF = {
    trained: tuple(recipe for family in FAMILIES if family.trains == trained for recipe in family.recipes)
    for trained in get_args(Trained)
}
BARE_OF = {
    trained: {family.bare: family for family in FAMILIES if family.bare and family.trains == trained}
    for trained in get_args(Trained)
}


def trained_by(name: str | None) -> Trained | None:
    """What a recipe, or a bare method, of this name trains; None: there is none."""
    names = {kind: [*BARE_OF[kind], *(recipe.name for recipe in RECIPES_OF[kind])] for kind in BARE_OF}
    return next((kind for kind in names if name in names[kind]), None)


RECIPES, TOKENIZER_RECIPES = RECIPES_OF["encoder"], RECIPES_OF["tokenizer"]
BARE_METHODS, BARE_TOKENIZERS = BARE_OF["encoder"], BARE_OF["tokenizer"]
