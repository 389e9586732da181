from __future__ import annotations

import numpy as np
import pytest

from vae_edge.ops import reparameterize as reference


@pytest.mark.parametrize(
    "counter, key, words",
    [  # Random123's file kat_vectors, the lines of philox4x32 with 10 rounds
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(
    counter: list[int], key: tuple[int, int], words: list[int]
) -> None:
    assert reference.philox4x32(np.array(counter, dtype=np.uint64)[:, None], key)[:, 0].tolist() == words


def test_other_rounds_give_other_words() -> None:
    counter = np.zeros((4, 1), dtype=np.uint64)
    assert reference.philox4x32(counter, (0, 0), rounds=7)[0, 0] != 0x6627E8D5


def test_uniforms_lie_in_the_half_open_unit_interval() -> None:
    words = np.array([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF], dtype=np.uint32)
    u = reference.uniform(words)
    assert u.dtype == np.float32
    assert u[0] == 0.0 and u[4] == 0.0
    assert 0.999999 < u[2] < 1.0 and u[2] == u[3]


def test_box_muller_equals_the_library_functions() -> None:
    u1, u2 = np.random.default_rng(0).random((2, 10_000)).astype(np.float32)
    n1, n2 = reference.box_muller(u1, u2)
    radius, turn = np.sqrt(-2 * np.log(u1.astype(np.float64))), 2 * np.pi * u2.astype(np.float64)
    np.testing.assert_allclose(n1, radius * np.cos(turn), rtol=0, atol=2e-6)
    np.testing.assert_allclose(n2, radius * np.sin(turn), rtol=0, atol=2e-6)


def test_box_muller_turns_right_in_every_quadrant() -> None:
    u1 = np.full(9, np.exp(-0.5), dtype=np.float32)
    n1, n2 = reference.box_muller(u1, np.arange(9, dtype=np.float32) / 8)
    np.testing.assert_allclose(n1, np.cos(np.arange(9) * np.pi / 4), atol=1e-6)
    np.testing.assert_allclose(n2, np.sin(np.arange(9) * np.pi / 4), atol=1e-6)


@pytest.mark.parametrize("start", [0, 1, 3, 2**34 - 2, 2**62 - 3])
def test_the_stream_is_one_wherever_it_is_entered(start: int) -> None:
    whole = reference.normal(5, start, 40)
    for skip in (1, 2, 5):
        assert np.array_equal(whole[skip:], reference.normal(5, start + skip, 40 - skip))


def test_an_empty_piece_of_the_stream_is_empty() -> None:
    assert reference.normal(5, 3, 0).shape == (0,)


@pytest.mark.parametrize("seed, offset, count", [(-1, 0, 1), (2**63, 0, 1), (0, -1, 1), (0, 2**63, 1), (0, 0, -1)])
def test_numbers_out_of_range_are_refused(seed: int, offset: int, count: int) -> None:
    with pytest.raises(ValueError, match="from 0 to"):
        reference.normal(seed, offset, count)
