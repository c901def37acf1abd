"""Whatever became of a file of ours, it is read or told in one message."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pantomim.checkpoint import Checkpoint
from pantomim.config import Pretrain, from_yaml, to_yaml
from pantomim.core.reading import read_json, read_yaml
from pantomim.engine.folder import Finished

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("a: 1\nb: 2\na: 3\n", "a is given twice, in line 3 again", id="twice"),
        pytest.param("a:\n  b: 1\n  b: 1\n", "b is given twice", id="inner"),
        pytest.param("[" * 2000, "nested too deeply", id="deep"),
        pytest.param(BOMB, "more than 100,000 values", id="bomb"),
        pytest.param("a: &a [*a]\n", "more than 100,000 values", id="circle"),
        pytest.param("a: !!python/object/apply:os.system [true]\n", "could not determine a constructor", id="code"),
        pytest.param("a: !!timestamp x\n", "NoneType", id="tag"),
        pytest.param("a: 2020-13-45\n", "month must be in", id="date"),
        pytest.param("? [a]\n: 1\n", "unhashable key", id="key"),
        pytest.param("a: [", "while parsing", id="cut"),
    ],
)
def test_yaml_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml cannot be read as YAML: .*{reason}.*Give the config"):
        from_yaml(Pretrain, file)


def test_anchors_and_merges_stay(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\n")
    assert read_yaml(file) == {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}


@pytest.mark.parametrize("kind", [Finished, Checkpoint, dict[str, float]])
@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "[" * 9000, '{"steps": []}', '{"step": {}}', "\udcff"])
def test_json_of_another_kind_is_refused_with_file_and_advice(tmp_path: Path, text: str, kind: Any) -> None:
    file = tmp_path / "x.json"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"x\.json must hold what was written to it; got .+\. Remove it\.$"):
        read_json(file, kind, "Remove it.")


def test_a_key_of_a_newer_version_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "finished.json"
    file.write_text('{"steps": 3, "wall_s": 1, "images_per_s": null, "loss": 0.5, "hue": "blue"}')
    assert read_json(file, Finished, "") == Finished(3, 1.0, None, 0.5)


def test_a_config_of_any_damage_is_read_or_told(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "config.yaml"
    whole = to_yaml(Pretrain("mae")).encode()
    for _ in range(60):
        place, byte = rng.integers(len(whole)), bytes([rng.integers(256)])
        file.write_bytes(whole[:place] if rng.random() < 0.3 else whole[:place] + byte + whole[place + 1 :])
        try:
            assert isinstance(from_yaml(Pretrain, file), Pretrain)
        except ValueError:
            continue
