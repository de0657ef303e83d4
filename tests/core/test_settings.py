"""Settings: what each type takes, from text and from Python, and how what it does not take is said."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivgr.core.errors import UserError, refusals, say
from ivgr.core.settings import (
    MOST,
    AboveOne,
    AtLeastTwo,
    Device,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Refused,
    Seed,
    Share,
    checked,
    fixed,
)
from ivgr.launch.parser import Parser, SettingError, reword

# Type, the least and the greatest it takes, and what lies just beyond either.
BOUNDS = [
    (PositiveInt, 1, MOST, 0, MOST + 1),
    (NonNegativeInt, 0, MOST, -1, MOST + 1),
    (AtLeastTwo, 2, MOST, 1, MOST + 1),
    (Seed, 0, 2**32 - 1, -1, 2**32),
    (PositiveFloat, math.ulp(0.0), 1e9, 0.0, 1e9 * (1 + 2**-52)),
    (NonNegativeFloat, 0.0, 1e9, -math.ulp(0.0), 1e9 * (1 + 2**-52)),
    (AboveOne, 1 + 2**-52, 1e9, 1.0, 1e9 * (1 + 2**-52)),
    (Share, 0.0, 1.0, -math.ulp(0.0), 1 + 2**-52),
    (PositiveShare, math.ulp(0.0), 1.0, 0.0, 1 + 2**-52),
]


@pytest.mark.parametrize(("made", "least", "greatest", "below", "above"), BOUNDS)
def test_bounds_are_taken_and_what_lies_beyond_is_not(made, least, greatest, below, above):
    for value in (least, greatest):
        assert made.rule.read(value) == value == made.rule.read(str(value))
    for value in (below, above, math.nan, math.inf, -math.inf, 1e30, "many", "", None, True, [1], {}):
        with pytest.raises(Refused, match="must be a"):
            made.rule.read(value)


@pytest.mark.parametrize("value", [2.0, 2.5, "2.0", "2e0", "0x2"])
def test_a_whole_number_is_written_as_one(value):
    with pytest.raises(Refused, match="must be a whole number from 1 to 1,000,000,000"):
        PositiveInt.rule.read(value)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.binary(), st.lists(st.integers())))
def test_anything_is_read_or_refused(value):
    for made in (PositiveInt, Share):
        try:
            number = made.rule.read(value)
        except Refused as refused:
            assert len(str(refused)) < 220
        else:
            assert made.rule.low <= number <= made.rule.high


def test_numbers_of_other_libraries_become_pythons():
    assert type(PositiveInt.rule.read(np.int64(3))) is int and type(Share.rule.read(np.float32(0.5))) is float


@pytest.mark.parametrize("value", ["cpu", "cuda", "cuda:0", "cuda:15", "mps"])
def test_devices(value):
    assert Device.rule.read(value) == value


@pytest.mark.parametrize("value", ["gpu", "cuda:", "cuda:-1", "cpu\n", "cuda:0 ", "", 0, None])
def test_what_is_no_device(value):
    with pytest.raises(Refused, match="must be cpu, cuda"):
        Device.rule.read(value)


@checked("thing.")
@dataclass
class Thing:
    size: PositiveInt
    share: Share | None = None
    kind: str = "any"


def test_a_call_from_python_is_held_to_the_same():
    assert Thing(3, None).size == 3 and Thing(size=3, share=0.5, kind=7).kind == 7
    with pytest.raises(UserError, match=r"^thing\.size is 0, must be a whole number from 1 to"):
        Thing(0)
    with pytest.raises(UserError, match=r"^thing\.share is 1\.5, must be a number from 0 to 1$"):
        Thing(1, share=1.5)
    with pytest.raises(TypeError, match="missing 1 required"):
        Thing()


def parser() -> Parser:
    made = Parser(exit_on_error=False)
    made.add_argument("--size", type=PositiveInt, default=1)
    made.add_argument("--share", type=Share | None, default=None)
    made.add_argument("--rounds", type=fixed(1, "set --size"), default=1)
    return made


def test_the_parser_reads_them():
    found = parser().parse_args(["--size", "7", "--share", "null", "--rounds", "1"])
    assert (found.size, found.share, found.rounds) == (7, None, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "0"], "size is 0, must be a whole number from 1 to 1,000,000,000"),
        (["--share", "2"], "share is 2, must be a number from 0 to 1"),
        (["--rounds", "4"], "rounds is 4, which this loop does not use; leave it out: set --size"),
        (["--sise", "1"], "unrecognized arguments: --sise 1"),
    ],
)
def test_the_parser_says_in_one_line_what_it_refuses(words, said):
    with pytest.raises(SettingError) as refused:
        parser().parse_args(words)
    assert str(refused.value) == said


def test_long_refusals_are_cut():
    with pytest.raises(SettingError) as refused:
        parser().parse_args(["--size", "9" * 10_000])
    assert len(str(refused.value)) <= 300


def test_jsonargparses_words_are_made_fewer():
    said = "Does not validate against any Subtypes: [x] Errors: - Expected a <class 'int'>. Got value: many"
    assert reword(said) == "is many, must be int"


def test_what_a_library_refuses_is_one_line():
    with pytest.raises(UserError, match=r"^key: no such thing; mend it$"), refusals("key", "mend it"):
        raise ValueError("no such\n  thing")
    with pytest.raises(KeyboardInterrupt), refusals("key", "mend it"):
        raise KeyboardInterrupt
    assert say(KeyError("momentum")) == "KeyError 'momentum'" and say(ValueError()) == "ValueError"
