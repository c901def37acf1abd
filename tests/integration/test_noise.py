"""`pantomim noise`: a bank on disk, its spectrum on the screen."""

import numpy as np
import pytest

from pantomim.cli import main
from pantomim.masking.bank import bank_path, read_bank
from pantomim.masking.noise import Noise


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "cache"))


def printed_bands(text: str) -> np.ndarray:
    rows = [line.split() for line in text.splitlines() if " to " in line]
    return np.array([[float(row[3]), float(row[4])] for row in rows])


def test_the_bank_that_is_made_is_the_bank_that_is_trained_with(tmp_path, capsys) -> None:
    main(["noise", "green", "--patterns", "4", "--side", "64"])
    path, printed = bank_path(Noise("green", patterns=4, side=64)), capsys.readouterr().out
    assert read_bank(path).shape == (4, 64, 64)
    assert path.name in printed
    patterns, masks = printed_bands(printed).T
    assert patterns.argmax() == masks.argmax() == 3  # the ring, at 0.15 to 0.25 cycles a patch
    assert masks[3] > 3


def test_a_single_pass_can_be_asked_for_and_written_elsewhere(tmp_path, capsys) -> None:
    out = tmp_path / "blue.npz"
    main(["noise", "blue", "--passes", "1", "--sigma", "0.5", "--patterns", "2", "--side", "32", "--out", str(out)])
    assert read_bank(out).shape == (2, 32, 32)
    assert "sigma 0.5, passes 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["purple", "--sigma", "1"], "Noise.sigma must be 2 number(s) for purple"),
        (["red", "--out", "red.txt"], "--out must end in .npz"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, words, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["noise", *arguments])
    assert stop.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())
