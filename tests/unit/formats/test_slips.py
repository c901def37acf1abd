"""What people give in place of an encoder by a slip, and what it is answered with."""

from pathlib import Path

import pytest

from pantomim.core.names import did_you_mean
from pantomim.formats import load_encoder
from pantomim.methods.base import few_images


def test_a_folder_of_transformers_is_known_as_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=rf"encoder must be hf:{tmp_path} "):
        load_encoder(tmp_path)


def test_a_folder_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none there"):
        load_encoder(f"hf:{tmp_path / 'missing'}")


def test_the_encoders_own_setting_is_meant_first() -> None:
    known = ["method.image_size", "method.encoder.image_size", "method.encoder.width"]
    assert did_you_mean("image_size", known) == " Did you mean method.encoder.image_size?"
    assert did_you_mean("method.image_siz", known) == " Did you mean method.image_size?"


def test_too_few_images_are_warned_of() -> None:
    assert "3 images alone" in str(few_images(3))
    assert few_images(12) is None
