"""The fidelities of the paper (section 3.2, supplement B) and the order of the cycles."""

import pytest

from lofi.fidelity import Fidelity, schedule

FULL = Fidelity(100, 8, 224)


@pytest.mark.parametrize(
    ("name", "snippets", "pixels"),
    [("s", 100, 112), ("t", 25, 224), ("st", 50, 158), ("low", 25, 112), ("full", 100, 224)],
)
def test_configurations_are_the_paper_s(name, snippets, pixels):
    assert schedule(name, FULL).at(0, 0) == Fidelity(snippets, 8, pixels)


def test_three_configurations_cost_a_quarter_within_half_a_percent():
    for name in ("s", "t", "st"):
        assert schedule(name, FULL).at(0, 0).cost / FULL.cost == pytest.approx(0.25, rel=0.005)


def test_long_cycle_switches_every_epoch_and_never_shows_full_fidelity():
    plan = schedule("long", FULL)
    seen = [plan.at(epoch, 600 * epoch + 5) for epoch in range(7)]
    assert [(f.snippets, f.pixels) for f in seen[:4]] == [
        (100, 112),
        (25, 224),
        (50, 158),
        (100, 112),
    ]
    assert FULL not in seen


def test_long_cycle_of_two_epochs_stays_two_epochs():
    plan = schedule("long", FULL, period_epochs=2)
    assert [plan.at(e, 0).snippets for e in range(6)] == [100, 100, 25, 25, 50, 50]


def test_short_cycle_switches_every_16_batches_and_goes_on_over_epoch_ends():
    plan = schedule("short", FULL)
    assert [plan.at(0, i).snippets for i in (0, 15, 16, 31, 32, 47, 48)] == [
        100, 100, 25, 25, 50, 50, 100,
    ]  # fmt: skip
    assert plan.at(0, 20) == plan.at(1, 20) == plan.at(9, 20)


def test_toy_fidelities_are_those_of_the_toy_study():
    full = Fidelity(32, 4, 48)
    found = [schedule(n, full).at(0, 0) for n in ("s", "t", "st")]
    assert [(f.snippets, f.pixels) for f in found] == [(32, 24), (8, 48), (16, 34)]


@pytest.mark.parametrize("bad", [0, -1, 2.5, True, "8"])
def test_a_fidelity_needs_positive_integers(bad):
    with pytest.raises(ValueError, match="snippets must be an integer"):
        Fidelity(snippets=bad)


def test_reduction_below_one_and_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        FULL.reduced(time=0.5)
    with pytest.raises(ValueError, match="known: s, t, st, low, full, short, long"):
        schedule("longest", FULL)
