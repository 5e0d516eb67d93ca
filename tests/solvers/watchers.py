"""A watcher for tests of solvers."""

from panda_sklearn.solvers.base import Watcher


class Listener(Watcher):
    """Keeps what it is told, and the results if wanted; may stop an iteration."""

    def __init__(self, stop_at=None, keep=False):
        self.stop_at, self.keep = stop_at, keep
        self.n_begun, self.objectives, self.results = 0, [], []

    def begin_iteration(self):
        self.n_begun += 1

    def end_iteration(self, objective, result):
        self.objectives.append(objective)
        if self.keep:
            self.results.append(result())
        return len(self.objectives) == self.stop_at
