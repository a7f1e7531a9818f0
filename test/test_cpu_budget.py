"""A share of a core, kept in processor time whatever the clock on the wall says; with clocks of the test's own."""

from __future__ import annotations

import pytest

from depth_ros.engines.cpu_budget import CpuBudget


class Machine:
    """Time passes only when told to."""

    def __init__(self, share: float) -> None:
        self.wall = self.spent = 0.0
        self.budget = CpuBudget(share, lambda: self.wall, lambda: self.spent)

    def work(self, seconds: float, crowd: float = 1.0) -> None:
        """So much processor time, which takes `crowd` times as long where others want the core too."""
        with self.budget.spending():
            self.spent += seconds
            self.wall += crowd * seconds

    def rest(self) -> float:
        pause = self.budget.pause()
        self.wall += pause
        return pause


@pytest.mark.parametrize('share', [0.1, 0.5, 1.0])
@pytest.mark.parametrize('crowd', [1.0, 4.0])
def test_over_time_it_takes_its_share_and_no_more_nor_less_than_others_leave(share, crowd):
    machine = Machine(share)
    while machine.wall < 100:
        machine.work(0.2, crowd)
        machine.rest()
    assert machine.budget.total == pytest.approx(machine.spent)
    assert machine.spent / machine.wall == pytest.approx(min(share, 1 / crowd), rel=0.02)


def test_what_others_spend_in_its_name_counts():
    machine = Machine(0.5)
    while machine.wall < 100:
        machine.work(0.1)
        machine.budget.charge(0.05)     # in another thread, meanwhile
        machine.rest()
    assert machine.budget.total / machine.wall == pytest.approx(0.5, rel=0.02) and machine.spent < machine.budget.total


def test_an_idle_hour_is_no_leave_to_take_the_core_for_long():
    machine = Machine(0.5)
    machine.wall = 3600.0
    begun = machine.wall
    for _ in range(100):
        machine.work(0.1)
        machine.rest()
    assert machine.spent <= 0.5 * (machine.wall - begun) + 1.0


def test_what_failed_counts_and_another_share_holds_from_then_on():
    machine = Machine(0.5)
    machine.wall = 10.0
    with pytest.raises(RuntimeError), machine.budget.spending():
        machine.spent += 5.5
        raise RuntimeError
    assert machine.rest() == pytest.approx(10.0)
    machine.budget.share = 0.1
    machine.work(1.0)
    assert machine.rest() == pytest.approx(9.0)
