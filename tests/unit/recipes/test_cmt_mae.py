from dataclasses import replace

import pytest
import torch

from pantomim.config import leaves, to_dict
from pantomim.explain import explain
from pantomim.recipes import RECIPES, prepare
from pantomim.recipes.cmt_mae import ORIGINS, in1k
from pantomim.teachers.choice import TeacherConfig

LABELS = ("stated", "said by a digest", "precedent", "ours")


def test_every_setting_of_the_starting_point_has_an_origin():
    names = [
        name
        for name in leaves(to_dict(in1k("base")))
        if name.partition(".")[0] not in ("runtime", "init", "validation", "extended")
    ]
    without = [name for name in names if name not in ("recipe", "method.kind")]
    assert [name for name in without if not name.startswith(tuple(ORIGINS))] == []
    assert all(origin.startswith(LABELS) for origin in ORIGINS.values())


@pytest.mark.slow
def test_no_value_of_ours_is_called_the_papers():
    recipe = next(recipe for recipe in RECIPES if recipe.name == "cmt_mae_micro_cifar10")
    run = prepare(recipe.name).config
    method = replace(run.method, teacher=TeacherConfig("random"), scores=replace(run.method.scores, renormalise=False))
    sections = dict(explain(replace(run, method=method), recipe.paper, torch.float32, (), recipe.origins))
    title = "Differences from the starting point (cmt_mae_vit_base_in1k)"
    told = dict(sections[title])
    assert told["method.scores.renormalise"] == "False   (ours: True)"
    assert told["method.teacher.source"] == "random   (stated: none named)"
    assert not any("(paper:" in value for value in told.values())
    assert dict(sections["Where the starting point comes from, as the paper's settings are not known"]) == ORIGINS
