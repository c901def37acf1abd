import torch

from pantomim.nn.upernet import UPerHead

WIDTH, SIDES = 4, ((16, 24), (8, 12), (4, 6), (2, 3))


def head(dropout=0.0):
    torch.manual_seed(0)
    return UPerHead(WIDTH, 6, 3, dropout=dropout).double()


def levels():
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(2, WIDTH, *side, generator=generator, dtype=torch.float64) for side in SIDES]


def test_logits_have_the_size_of_the_finest_map():
    assert head()(levels()).shape == (2, 3, *SIDES[0])


def test_every_map_is_read_and_the_coarsest_one_is_seen_everywhere():
    given, model = levels(), head().eval()
    before = model(given)
    near, far = [], []
    for number in range(4):
        changed = [level.clone() for level in given]
        changed[number][:, :, 0, 0] += 1
        different = (model(changed) != before).any(dim=1)
        near.append(bool(different[:, 0, 0].all()))
        far.append(bool(different[:, -1, -1].any()))
    assert near == [True, True, True, True]
    assert far == [False, False, False, True], "pooled to one cell"


def test_dropout_takes_whole_channels():
    model = head(dropout=0.5)
    seen = []
    model.conv_seg.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(levels())
    dropped = (seen[0] == 0).flatten(2).all(dim=2)
    assert 0 < dropped.double().mean() < 1
    assert model.eval()(levels()).equal(model(levels()))
