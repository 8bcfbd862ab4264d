"""The published routers that are small networks: matrix factorization, item response theory, perceptron.

Each is written from its paper's formulae. Settings are the paper's or, where it is silent, those of the code
its authors published; what is neither is marked *ours*. All run on the CPU, from one seed.

A batch counts answers in the papers, that is pairs of prompt and member. Here it takes prompts with all
their members' answers, as many as make a batch of that size: the same loss from a cheaper product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from benchmarks.rivals_base import Guess, fitted, require_complete
from ensemble.errors import MissingExtraError
from ensemble.learning.baselines import Fitted, Floats

PATIENCE = 10  # epochs


@dataclass(frozen=True)
class Adam:
    """Minibatch training (Kingma & Ba 2014). ``batch`` counts answers, or what else the method says.

    With ``least_progress`` above 0, it ends when more than PATIENCE epochs in a row have each lowered the
    training loss by less than that (scikit-learn's rule).
    """

    learning_rate: float
    batch: int
    epochs: int
    weight_decay: float = 0.0
    least_progress: float = 0.0

    def minimize(
        self, loss: Callable[[Any], Any], parameters: Sequence[Any], n_rows: int, *, answers_per_row: int = 1
    ) -> None:
        """``loss`` maps a tensor of row numbers below ``n_rows`` to their mean loss; no rows, no training."""
        torch = _torch()
        optimizer = torch.optim.Adam(
            parameters, self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        best, idle = float("inf"), 0
        for _ in range(self.epochs if n_rows else 0):
            total = 0.0
            for rows in torch.randperm(n_rows).split(max(1, self.batch // answers_per_row)):
                optimizer.zero_grad()
                value = loss(rows)
                value.backward()
                optimizer.step()
                total += value.item() * len(rows)
            idle = 0 if total / n_rows <= best - self.least_progress else idle + 1
            best = min(best, total / n_rows)
            if self.least_progress and idle > PATIENCE:
                break


@dataclass(frozen=True)
class EmbedLLM:
    """Matrix factorization over prompt features (EmbedLLM, Zhuang et al. 2024, arXiv 2410.02223).

    ``P(right) = sigmoid(w . (member_vector * (W features + b)) + c)``. Published settings: 232 dimensions,
    Gaussian noise of 0.05 on the features while training, Adam at 1e-4 with weight decay 1e-5, 50 epochs of
    batches of 2,048 answers. One logit where they take the softmax of two, which is the same model.
    """

    size: int = 232
    noise: float = 0.05
    training: Adam = Adam(1e-4, batch=2048, epochs=50, weight_decay=1e-5)

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        torch = _torch()
        n_prompts, n_members = reward.shape
        x, y = _tensor(features), _tensor(reward)
        with _reproducible(seed):
            project = torch.nn.Linear(x.shape[1], self.size)
            member = torch.nn.Parameter(torch.randn(n_members, self.size))
            readout = torch.nn.Linear(self.size, 1)

            def logit(x: Any) -> Any:
                return project(x) @ (member * readout.weight).T + readout.bias

            def loss(rows: Any) -> Any:
                noisy = x[rows] + self.noise * torch.randn(len(rows), x.shape[1])
                return torch.nn.functional.binary_cross_entropy_with_logits(logit(noisy), y[rows])

            parameters = [*project.parameters(), member, *readout.parameters()]
            self.training.minimize(loss, parameters, n_prompts, answers_per_row=n_members)
        return fitted(features, cost, _guess(lambda x: logit(x).sigmoid()))


@dataclass(frozen=True)
class RouteLLM:
    """Matrix factorization learned from preferences (RouteLLM, Ong et al. 2024, arXiv 2406.18665).

    ``score = w . (member_vector / |member_vector| * (W features + b))`` with ``P(i beats j) = sigmoid(score_i
    - score_j)``, learned from all pairs of members of which one did better. Published settings: 128
    dimensions, Gaussian noise of 0.1 on the features while training, Adam at 3e-4 with weight decay 1e-5,
    batches of 64 pairs, and the paper's 10 epochs (the script beside it has 100).

    Ours is what their two members don't need. A pair counts by how far its rewards are apart, which is 1
    where answers are right or wrong. And back from win rates to rewards: the lead of i over j is their mean
    absolute gap times ``2 P(i beats j) - 1``; averaged over j, it is i's lead over the members' mean. How
    hard a prompt is for all of them the method cannot tell, so their overall mean stands in.
    """

    is_probability: ClassVar[bool] = False
    size: int = 128
    noise: float = 0.1
    training: Adam = Adam(3e-4, batch=64, epochs=10, weight_decay=1e-5)

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        torch = _torch()
        x, y = _tensor(features), _tensor(reward)
        prompt, winner, loser = torch.nonzero(y[:, :, None] > y[:, None, :], as_tuple=True)
        gap = y[prompt, winner] - y[prompt, loser]
        with _reproducible(seed):
            project = torch.nn.Linear(x.shape[1], self.size)
            member = torch.nn.Parameter(torch.randn(y.shape[1], self.size))
            readout = torch.nn.Linear(self.size, 1, bias=False)

            def score(x: Any) -> Any:
                return project(x) @ (torch.nn.functional.normalize(member) * readout.weight).T

            def loss(rows: Any) -> Any:
                noisy = x[prompt[rows]] + self.noise * torch.randn(len(rows), x.shape[1])
                scores = score(noisy)
                lead = scores.gather(1, winner[rows, None]) - scores.gather(1, loser[rows, None])
                return -(gap[rows] * torch.nn.functional.logsigmoid(lead[:, 0])).mean()

            parameters = [*project.parameters(), member, *readout.parameters()]
            self.training.minimize(loss, parameters, len(gap))
        gaps = (y[:, :, None] - y[:, None, :]).abs().mean(dim=0)  # (n_members, n_members)

        def reward_guess(x: Any) -> Any:
            scores = score(x)
            wins = (scores[:, :, None] - scores[:, None, :]).sigmoid()
            return y.mean() + (gaps * (2 * wins - 1)).mean(dim=2)

        return fitted(features, cost, _guess(reward_guess))


@dataclass(frozen=True)
class ItemResponse:
    """Multidimensional item response theory (MIRT of IRT-Router, Song et al. 2025, arXiv 2506.01048).

    ``P(right) = sigmoid(a(features) . ability - b(features))`` with ``a = softplus(A features) > 0`` the
    prompt's discriminations and ``b`` its difficulty, both linear without intercept. Published settings: 25
    dimensions, Adam at 1e-3, 9 epochs of batches of 512 answers. Ours: each member's ability is learned
    freely, where theirs is a line from the features of a text about the member, which tables don't have.
    """

    size: int = 25
    training: Adam = Adam(1e-3, batch=512, epochs=9)

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        torch = _torch()
        n_prompts, n_members = reward.shape
        x, y = _tensor(features), _tensor(reward)
        with _reproducible(seed):
            discriminate = torch.nn.Linear(x.shape[1], self.size, bias=False)
            difficulty = torch.nn.Linear(x.shape[1], 1, bias=False)
            ability = torch.nn.Linear(n_members, self.size, bias=False)  # of one-hot members

            def logit(x: Any) -> Any:
                return torch.nn.functional.softplus(discriminate(x)) @ ability.weight - difficulty(x)

            def loss(rows: Any) -> Any:
                return torch.nn.functional.binary_cross_entropy_with_logits(logit(x[rows]), y[rows])

            parameters = [*discriminate.parameters(), *difficulty.parameters(), *ability.parameters()]
            self.training.minimize(loss, parameters, n_prompts, answers_per_row=n_members)
        return fitted(features, cost, _guess(lambda x: logit(x).sigmoid()))


@dataclass(frozen=True)
class Perceptron:
    """A perceptron per member for its rewards (RouterBench, Hu et al. 2024, arXiv 2403.12031).

    Published settings: scikit-learn's ``MLPRegressor``, that is squared error, Adam at 1e-3, batches of 200
    prompts, weight penalty 1e-4 / batch and at most 200 epochs, ended by its training loss; one hidden layer
    of 100 rectified units. Ours: costs likewise, by one such network for all members on their standardized
    costs, where the paper takes each member's mean.
    """

    hidden: int = 100
    training: Adam = Adam(1e-3, batch=200, epochs=200, weight_decay=1e-4 / 200, least_progress=1e-4)

    def fit(self, features: Floats, reward: Floats, cost: Floats, *, seed: int = 0) -> Fitted:
        require_complete(features, reward, cost)
        torch = _torch()
        usd = np.asarray(cost, np.float64)
        mean, scale = usd.mean(axis=0), np.maximum(usd.std(axis=0), 1e-12)
        x, y = _tensor(features), _tensor(reward)
        with _reproducible(seed):
            members = [self._regress(x, column) for column in y.split(1, dim=1)]
            costs = _guess(self._regress(x, _tensor((usd - mean) / scale)))
        rewards = _guess(lambda x: torch.cat([network(x) for network in members], dim=1))
        return fitted(features, cost, rewards, lambda x: mean + scale * costs(x))

    def _regress(self, x: Any, y: Any) -> Any:
        """One network from x (n, n_features) to y (n, n_outputs)."""
        nn = _torch().nn
        enter, leave = nn.Linear(x.shape[1], self.hidden), nn.Linear(self.hidden, y.shape[1])
        for layer in (enter, leave):
            nn.init.xavier_uniform_(layer.weight)  # as scikit-learn begins
        network = nn.Sequential(enter, nn.ReLU(), leave)

        def loss(rows: Any) -> Any:
            return nn.functional.mse_loss(network(x[rows]), y[rows]) / 2

        self.training.minimize(loss, list(network.parameters()), len(x))
        return network


def _guess(output: Callable[[Any], Any]) -> Guess:
    """From a function of tensors to one of arrays."""

    def guess(features: Floats) -> Any:
        with _torch().no_grad():
            return output(_tensor(features)).numpy()

    return guess


def _tensor(values: Floats) -> Any:
    return _torch().as_tensor(np.asarray(values, np.float32))


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "encoder", "a router that is a network") from error
    return torch


@contextlib.contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Random numbers from ``seed``, and one thread: sums then have one order, and products this small wait
    for a second thread longer than it helps. The caller's own numbers and threads are given back."""
    torch = _torch()
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
