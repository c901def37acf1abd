"""Pictures of any encoder: attention, colours of patches, neighbours, map, duplicates; files, pages and reports."""

import csv
import io
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from tiny import ENCODER, tiny_images, tiny_run

from pantomim.analysis import OF_ANY_ENCODER, VIEWS, write_all_pictures
from pantomim.analysis.attention_maps import attended, laid_over
from pantomim.analysis.duplicates import near_pairs
from pantomim.analysis.map import draw_map, laid_out
from pantomim.analysis.neighbours import most_alike
from pantomim.analysis.pca import foreground, principal
from pantomim.analysis.pictures import PictureRows, Row, cells, read_rows, write_rows
from pantomim.cli import main
from pantomim.config import to_yaml
from pantomim.data.sources import open_source
from pantomim.formats.native import save_decoder, save_encoder
from pantomim.nn.vit import Encoder
from pantomim.report.inspection import write_views
from pantomim.report.page import make_report

COPY, ODD = 7, 31  # images of `photos`: the 8th is a copy of the 1st, the 32nd is like no other


def photos(path, count=40, channels=3):
    """Smooth ramps, without classes; one is a copy of another, one is unlike the others."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(60, 190, (count, 2, channels))
    steps = np.linspace(0, 1, 16)[None, :, None, None]
    images = ends[:, None, :1] * (1 - steps) + ends[:, None, 1:] * steps + rng.uniform(-6, 6, (count, 16, 16, channels))
    if count > ODD:
        images[COPY], images[ODD] = images[0], (np.arange(16) // 2 % 2 * 255)[:, None]  # stripes
    np.savez(path, images=images.clip(0, 255).astype(np.uint8))
    return path


def finished_run(folder, source, **encoder):
    """What a run leaves behind, with random weights far from their initial values."""
    config = tiny_run(source)
    config = replace(config, method=replace(config.method, encoder=replace(ENCODER, **encoder)))
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    torch.manual_seed(0)
    model = config.method.build()
    with torch.no_grad():
        for parameter in model.encoder.blocks.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    save_encoder(folder, model.encoder, scale=open_source(str(source)).scale, recipe="tiny")
    save_decoder(folder, model.decoder)
    return folder


@pytest.fixture
def source(tmp_path):
    return photos(tmp_path / "photos.npz")


@pytest.fixture
def run(tmp_path, source):
    return finished_run(tmp_path / "run", source)


def look(name, run, source, **options):
    (found,) = VIEWS[name]((str(run),), str(source), **options).run()
    return found


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("block", [1, None])
def test_attention_is_the_blocks_and_sums_to_one(class_token, block):
    torch.manual_seed(0)
    encoder = replace(ENCODER, class_token=class_token, registers=2).build().eval()
    images = torch.rand(2, 3, 16, 16)
    found = attended(encoder, images, block)
    own = list(encoder.each_block(images, need_attention=True))[(block or 0) - 1].attention
    expected = own[:, :, 0] if class_token else own[:, :, 2:].mean(dim=2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"block must be in \[1, 2\]"):
        attended(encoder, images, 3)


def test_attention_of_one_block_is_held_at_once(monkeypatch):
    encoder, each_block = replace(ENCODER, depth=6).build().eval(), Encoder.each_block
    seen, alive = [], []

    def watched(*given, **named):
        for features in each_block(*given, **named):
            seen.append(weakref.ref(features.attention))
            alive.append(sum(one() is not None for one in seen))
            yield features

    monkeypatch.setattr(Encoder, "each_block", watched)
    attended(encoder, torch.rand(1, 3, 16, 16))
    assert len(seen) == 6
    assert max(alive) <= 3  # this one, the one before, and what the loop holds


def test_a_map_is_brightest_where_most_is_attended_to():
    heads = np.array([[[0.1, 0.2], [0.3, 0.4]]])
    (picture,) = laid_over(np.full((4, 4, 1), 100, dtype=np.uint8), heads)
    corners = picture[[0, 0, 3, 3], [0, 3, 0, 3]].sum(axis=1)
    assert (np.diff(corners) > 0).all()
    assert (cells(heads, (4, 6))[0, 3] == [0.3] * 3 + [0.4] * 3).all()


def test_components_are_scikit_learns():
    features = np.random.default_rng(0).standard_normal((4, 9, 5))
    values, share = principal(features)
    expected = PCA(5).fit(features.reshape(-1, 5))
    np.testing.assert_allclose(values.reshape(-1, 3), expected.transform(features.reshape(-1, 5))[:, :3], atol=1e-10)
    assert share == pytest.approx(expected.explained_variance_ratio_[:3].sum())
    first = np.full((2, 5, 5), -1.0)
    first[:, 2, 1:4] = 2.0  # in the middle
    assert (foreground(first) == foreground(-first)).all()
    assert foreground(first).sum() == 6


def test_planted_copy_and_outlier_are_found(run, source, tmp_path):
    seen = look("neighbours", run, source)
    lines = {row.title: row for row in seen.rows}
    assert len(lines) == 12
    assert len(seen.rows[0].pictures) == len(seen.items) == 6
    names = open_source(str(source), "all").names
    found = look("duplicates", run, source, near=0.05)
    (path,) = [path for path in write_rows(found, tmp_path / "found.npz") if path.suffix == ".csv"]
    listed = list(csv.DictReader(path.read_text().splitlines()))
    assert [(line["image"], line["other"]) for line in listed if line["kind"] == "near duplicate"] == [
        (names[0], names[COPY])
    ]
    assert names[ODD] in [line["image"] for line in listed if line["kind"] == "outlier"]
    assert [row.title for row in found.rows] == ["Near duplicates", "Outliers"]
    assert "no proof" in found.caption


def test_neighbours_are_those_of_a_search_by_hand():
    unit = np.random.default_rng(0).standard_normal((30, 6))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    similarity, nearest = most_alike(unit, 4)
    by_hand = unit @ unit.T - 2 * np.eye(30)
    assert (nearest == np.argsort(-by_hand, axis=1)[:, :4]).all()
    np.testing.assert_allclose(similarity, -np.sort(-by_hand, axis=1)[:, :4])


def test_all_pairs_of_a_burst_are_found():
    """More than the five neighbours by which outliers are told."""
    rng = np.random.default_rng(0)
    unit = rng.standard_normal((60, 6))
    unit[7:30:2] = unit[7] + 0.01 * rng.standard_normal((12, 6))  # 12 photos of one thing
    unit[[40, 50]] = unit[41]  # and copies
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T + 2 * np.eye(60)
    pairs, count = near_pairs(unit, apart.min(axis=1), 1e-3)
    assert len(pairs) == count == 66 + 3
    assert {(one, two) for _, one, two in pairs} == set(zip(*np.nonzero(np.triu(apart <= 1e-3)), strict=True))
    assert [pair[0] for pair in pairs] == sorted(pair[0] for pair in pairs)
    assert near_pairs(unit, apart.min(axis=1), -1.0) == ([], 0)


def test_a_map_repeats_and_thumbnails_hardly_cover_each_other(run, source):
    first, second = look("map", run, source), look("map", run, source)
    assert (first.rows[0].pictures == second.rows[0].pictures).all()
    assert first.table == second.table
    assert len(first.table) == 41
    points = laid_out(np.random.default_rng(0).standard_normal((500, 8)), "tsne", 0)
    assert points.min() == 0
    assert points.max() == 1
    canvas, placed = draw_map(points, np.full((500, 64, 64, 1), 255, dtype=np.uint8))
    covered = (canvas == 255).all(axis=2).sum()
    assert 50 < placed < 500
    assert covered > 0.6 * placed * 64 * 64


def test_classes_are_told_where_there_are_any(run, tmp_path):
    labelled = tiny_images(tmp_path / "labelled.npz", num_images=60)
    assert "of the same class for" in look("neighbours", run, labelled).lead
    assert look("neighbours", run, labelled).labelled
    assert not look("neighbours", run, photos(tmp_path / "without.npz")).labelled


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_few_images_are_enough_or_it_is_said(run, tmp_path, count):
    few = photos(tmp_path / "few.npz", count)
    for kind in OF_ANY_ENCODER:
        found = look(kind.name, run, few)
        if count < kind.least:
            assert not found.rows
            assert f"needs at least 3 images; {few} has {count}" in found.warnings[0]
        else:
            assert f"{min(count, kind.usual)} images of few" in found.caption
            assert ("There are no more." in found.caption) == (count <= kind.usual)


def test_a_collapsed_encoder_is_said_in_the_place_of_pictures(run, source):
    torch.manual_seed(0)
    encoder = ENCODER.build()
    torch.nn.init.zeros_(encoder.norm.weight)
    torch.nn.init.ones_(encoder.norm.bias)
    save_encoder(run, encoder, scale=open_source(str(source)).scale, recipe="tiny")
    for kind in OF_ANY_ENCODER:
        found = look(kind.name, run, source)
        assert not found.rows
        assert "the encoder has collapsed" in found.warnings[0]


def test_any_number_of_bands(tmp_path):
    bands = photos(tmp_path / "bands.npz", channels=7)
    run = finished_run(tmp_path / "run", bands, in_chans=7, mean=(0.5,) * 7, std=(0.3,) * 7)
    for kind in OF_ANY_ENCODER:
        found = look(kind.name, run, bands)
        assert "Bands 1, 2, 3 of 7 shown." in found.caption
        assert {row.pictures.shape[3] for row in found.rows} <= {3, 4}


@pytest.mark.parametrize("ending", ["html", "png", "svg"])
def test_pages_and_files(tmp_path, ending):
    pictures = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    rows = (Row("images", "", pictures[..., :1]), Row("a <run>", "1.0 %", pictures, ("0.9 · x/y.jpg", "0.8 · z.jpg")))
    found = PictureRows(("one", "two"), rows, "A caption.", "A sentence.", ("A warning.",), "runs/a", table=(("a",),))
    out = write_views([found, found], "Title", tmp_path / f"a.{ending}")
    if ending == "png":
        assert Image.open(io.BytesIO(out.read_bytes())).size[0] == 1800
    elif ending == "svg":
        assert out.read_text().count("<image") == 8
    else:
        text = out.read_text()
        assert text.count('src="data:image/png;base64,') == 8
        assert all(words in text for words in ("a &lt;run&gt;", "A caption.", "A sentence.", "A warning.", "runs/a"))
    write_rows(found, tmp_path / "a.npz")
    again = read_rows(tmp_path / "a.npz")
    assert (again.items, again.lead, again.encoder) == (found.items, found.lead, found.encoder)
    assert again.rows[1].labels == rows[1].labels
    assert (again.rows[1].pictures == pictures).all()


def test_the_report_shows_them_and_they_are_made_once(run, capsys):
    write_all_pictures(run)
    page = make_report(run).read_text()
    assert all(f'<h2 id="{kind.name}">' in page for kind in OF_ANY_ENCODER)
    assert "These images have no labels" in page
    assert "Pictures of what the encoder sees" in page
    assert "fewer than 12 are held out" in page
    made = {path: path.stat().st_mtime_ns for path in (run / "analysis").glob("*.npz")}
    assert {path.stem for path in made} == {"reconstructions", *(kind.name for kind in OF_ANY_ENCODER)}
    write_all_pictures(run)
    again = {path for path, then in made.items() if path.stat().st_mtime_ns != then}
    assert {path.stem for path in again} == {"reconstructions"}
    save_encoder(run, ENCODER.build(), scale=open_source(str(run.parent / "photos.npz")).scale, recipe="tiny")
    assert "map.npz was made with other weights" in make_report(run).read_text()
    write_all_pictures(run)
    assert "was made with other weights" not in make_report(run).read_text()


def test_the_command(run, source, tmp_path, capsys):
    main(["inspect", "pca", str(run), str(run / "encoder.safetensors"), "--count", "3"])
    assert (run / "analysis" / "pca-compared.html").read_text().count('class="view"') == 6
    main(
        ["inspect", "reconstruct", str(run), "--images", str(source), "--count", "2", "--out", str(tmp_path / "a.png")]
    )
    assert np.load(tmp_path / "a.npz")["original"].shape == (2, 16, 16, 3)
    main(["inspect", "duplicates", str(run)])
    assert (run / "analysis" / "duplicates.csv").is_file()
    capsys.readouterr()
    for arguments, message in [
        (["attention", str(run), "--block", "9"], "--block must be in [1, 2]"),
        (["reconstruct", str(run / "encoder.safetensors"), "--images", str(source)], "--out must be given where"),
        (["map", str(run), "--out", "x.jpg"], "must end in .html or .htm or .png or .svg"),
    ]:
        with pytest.raises(SystemExit):
            main(["inspect", *arguments])
        assert message in " ".join(capsys.readouterr().err.split())
