"""The loop of all solvers, and when it ends."""

import pytest

from panda_sklearn.solvers.base import Iteration, StoppingRule, iterate
from tests.solvers.watchers import Listener


def steps(*values, energy=1.0, n_samples=1, ends=None):
    """A step that returns these objectives in turn, and the last one from then on."""

    def step(n_iter):
        f = values[min(n_iter, len(values)) - 1]
        end = "it is over" if n_iter == ends else ""
        return Iteration(f, energy, n_samples, end)

    return step


def run(step, *, tol=0.1, max_iter=20, window=1, **options):
    rule = StoppingRule(tol, window=window)
    return iterate(step, rule=rule, max_iter=max_iter, **options)


def test_ends_when_the_objective_hardly_falls():
    course = run(steps(1.0, 0.5, 0.25, 0.2))
    assert course == (
        [1.0, 0.5, 0.25, 0.2],
        True,
        "the relative objective fell by less than tol=0.1",
    )


def test_falls_are_shares_of_the_energy_and_the_history_means_over_samples():
    values = [100.0, 50.0, 45.0, 44.0]
    course = run(steps(*values, energy=100.0, n_samples=4), tol=0.02)
    assert course.objective_history == [25.0, 12.5, 11.25, 11.0]
    assert course.converged


def test_a_rise_is_no_fall():
    assert len(run(steps(1.0, 0.5, 0.6)).objective_history) == 3


def test_max_iter():
    course = run(steps(*(1 / n for n in range(1, 9))), tol=1e-9, max_iter=3)
    assert course == ([1, 1 / 2, 1 / 3], False, "max_iter was reached")


def test_tol_zero_goes_on():
    course = run(steps(1.0), tol=0.0, max_iter=7)
    assert len(course.objective_history) == 7 and not course.converged


def test_the_end_that_a_step_knows():
    course = run(steps(1.0, 0.5, 0.2, ends=2))
    assert course == ([1.0, 0.5], True, "it is over")
    assert run(steps(1.0, ends=1), tol=0.0).converged


def test_a_watcher_is_told_each_objective_and_may_end_it():
    listener = Listener(stop_at=2)
    course = run(steps(1.0, 0.5, 0.2), watcher=listener)
    assert listener.objectives == [1.0, 0.5] and listener.n_begun == 2
    assert course == ([1.0, 0.5], False, "a callback asked to stop")
    # Convergence in the same iteration is convergence.
    assert run(steps(1.0, 0.99), watcher=Listener(stop_at=2)).converged


def test_objectives_below_zero_are_rounding():
    assert run(steps(1.0, -1e-17)).objective_history[:2] == [1.0, 0.0]


def test_windows_are_averaged():
    """Over two iterations: 1.0, 0.75, 0.7 and 0.65 fall by 0.2 from pair to pair."""
    values = [1.1, 0.9, 0.8, 0.7, 0.72, 0.68]
    course = run(steps(*values), tol=0.1, window=2)
    # (1.1 + 0.9 - 0.8 - 0.7) / 2 = 0.25; (0.9 + 0.8 - 0.7 - 0.72) / 2 = 0.14;
    # (0.8 + 0.7 - 0.72 - 0.68) / 2 = 0.05.
    assert course.objective_history == values
    assert "an iteration" in course.reason


@pytest.mark.parametrize(
    "n_samples, batch_size, window",
    [
        (60, None, 10),
        (60, 60, 10),
        (60, 90, 10),
        (60, 20, 12),
        (60, 7, 18),
        (60, 1, 60),
    ],
)
def test_windows_are_of_whole_passes(n_samples, batch_size, window):
    rule = StoppingRule.of_passes(1e-3, n_samples, batch_size)
    assert rule.window == window and rule.fall == pytest.approx(1e-2)


def test_on_a_plateau_the_solver_is_asked_for_help():
    asked = []

    def help_along():
        asked.append(True)
        return len(asked) <= 2

    course = run(steps(1.0, 0.5, 0.5), on_plateau=help_along)
    # Each time the rule begins anew, and needs two more iterations.
    assert len(asked) == 3 and len(course.objective_history) == 3 + 2 + 2
    assert course.converged


def test_data_that_are_all_zero_need_no_help():
    course = run(steps(0.0, energy=0.0), on_plateau=lambda: 1 / 0)
    assert course.objective_history == [0.0, 0.0] and course.converged


def test_a_rule_can_be_used_again():
    rule = StoppingRule(0.1)
    for _ in range(2):
        rule.restart()
        course = iterate(steps(1.0, 0.99), rule=rule, max_iter=9)
        assert len(course.objective_history) == 2
