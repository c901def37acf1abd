import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from pantomim.core.files import cache_folder
from pantomim.masking import bank as banks
from pantomim.masking.bank import bank_path, cached_bank, read_bank, write_bank
from pantomim.masking.noise import Noise, make_bank

SMALL = Noise("green", patterns=2, side=16)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PANTOMIM_CACHE", str(tmp_path / "cache"))


def test_the_cache_is_where_it_is_set(tmp_path, monkeypatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("PANTOMIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pantomim"


def test_a_bank_is_made_once(monkeypatch) -> None:
    made = cached_bank(SMALL)
    assert torch.equal(made, make_bank(SMALL))
    monkeypatch.setattr(banks, "make_bank", None)  # making it again would fail
    assert torch.equal(cached_bank(SMALL), made)


def test_every_setting_has_its_own_file() -> None:
    others = [
        replace(SMALL, sigma=(0.8, 1.7)),
        replace(SMALL, passes=1),
        replace(SMALL, equalise=False),
        replace(SMALL, blur="transfer_function"),
        replace(SMALL, patterns=3),
        replace(SMALL, side=17),
        replace(SMALL, seed=1),
        replace(SMALL, color="purple"),
    ]
    assert len({bank_path(noise) for noise in [SMALL, *others]}) == 9
    assert bank_path(replace(SMALL, sigma=(0.8, 1.6), passes=5)) == bank_path(SMALL)  # the preset, spelled out


@pytest.mark.parametrize("damage", ["cut off", "a bit turned", "emptied", "another bank"])
def test_a_damaged_cache_is_made_anew(damage) -> None:
    made, path = cached_bank(SMALL), bank_path(SMALL)
    content = bytearray(path.read_bytes())
    if damage == "another bank":
        write_bank(path, made[:1])
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes({"cut off": content[:-400], "a bit turned": content, "emptied": b""}[damage])
    assert torch.equal(cached_bank(SMALL), made)
    assert torch.equal(read_bank(path), made)


def test_no_turned_bit_gives_another_bank_or_another_error(tmp_path) -> None:
    made, path = make_bank(SMALL), tmp_path / "bank.npz"
    write_bank(path, made)
    content, refused = path.read_bytes(), 0
    for place in [*range(0, 160, 2), *range(len(content) - 160, len(content))]:  # what an archive says of itself
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert torch.equal(read_bank(path), made)
        except ValueError:  # then the cache makes it anew
            refused += 1
    assert refused > 50


def test_processes_that_ask_at_once_wait_for_one(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(banks, "make_bank", lambda noise: calls.append(1) or make_bank(noise))
    threads = [threading.Thread(target=cached_bank, args=(SMALL,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert not [name for name in os.listdir(bank_path(SMALL).parent) if name.endswith(".tmp")]


def test_banks_of_the_authors_load_as_they_are(tmp_path) -> None:
    values = np.random.default_rng(0).random((5, 24, 20))  # float64, under any name
    np.savez(tmp_path / "green_noise_data_3072.npz", anything=values)
    assert torch.equal(read_bank(tmp_path / "green_noise_data_3072.npz"), torch.from_numpy(values).float())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((4, 4)), "three dimensions"),
        (np.array([[["a"]]]), "numbers in three dimensions, and holds <U1"),
        (np.full((1, 2, 2), np.nan), "finite"),
        (np.zeros((0, 4, 4)), "three dimensions"),
        (np.array([[[{}]]]), "would have to run code"),
    ],
)
def test_what_is_no_bank_is_refused(tmp_path, values, words) -> None:
    np.savez(tmp_path / "bank.npz", values)
    with pytest.raises(ValueError, match=words):
        read_bank(tmp_path / "bank.npz")


def test_files_that_cannot_be_read_are_refused(tmp_path) -> None:
    np.save(tmp_path / "bank.npy", np.zeros((1, 2, 2)))
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "empty.npz")
    for name in ("bank.npy", "text.npz", "empty.npz", "missing.npz"):
        with pytest.raises(ValueError, match=rf"bank must be readable; got .*{name}.*pantomim noise"):
            read_bank(tmp_path / name)
