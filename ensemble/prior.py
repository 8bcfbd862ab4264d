"""What to expect of a member that nobody has measured: like those nearest to it, and far from sure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .errors import ConfigError
from .records import FloatArray, Member, Prediction

# Chosen by leaving each member of three outcome tables out in turn: the error of the prior is then
# .10 to .26 of reward (root mean square), and beyond 2 reward_std in under 5 % of tasks x members.
SAME_PRICE = 0.5  # decades: how far apart two prices may lie and still say something of each other
OTHER_KIND = 0.3  # weight of a member of another kind, against 1 of the same
STRANGER = 0.1  # weight that every measured member has, whatever its kind and price
LEAST_STD = 0.2  # reward
FLAT_REWARD, FLAT_STD = 0.5, 0.3
FLAT_TOKENS, FLAT_TOKENS_P95 = 500.0, 4000.0
_ARRAYS = ("reward", "reward_std", "output_tokens", "output_tokens_p95")


class Prior:
    """Widens a router's prediction to a whole pool; made once for a router and a pool.

    A member of the pool that the router knows is *measured*: its figures are copied, bit for bit.
    An unmeasured member u takes, for each prompt, a mean over the measured members k of the pool
    and of ``references`` (members of the router that left the pool, with kind and price)::

        weight(u, k) = STRANGER + same_kind(u, k) * exp(-(log10(price_u / price_k) / SAME_PRICE)**2 / 2)
        reward       = mean of reward_k, under those weights made to sum to 1
        reward_std   = sqrt(mean of (reward_k - reward)**2 + mean of reward_std_k**2), at least LEAST_STD
        tokens       = mean of output_tokens_k
        tokens p95   = twice the mean of output_tokens_p95_k, or the largest of them if that is more

    where same_kind is 1 or OTHER_KIND, and price is USD per million tokens, three of input to one of
    output. So a hard prompt stays hard for everyone, and more is expected of the dear than of the
    cheap exactly where the measured members show that. With nobody to compare with, the prior is
    flat: FLAT_REWARD, FLAT_STD, and of tokens what the router says of its own members.

    ``measured`` is bool ``(n_members,)`` in the pool's order.
    """

    def __init__(
        self, known: Sequence[str], members: Iterable[Member], references: Iterable[Member] = ()
    ) -> None:
        members = tuple(members)
        self.known = tuple(known)
        self.names = tuple(member.name for member in members)
        self.measured: npt.NDArray[np.bool_] = np.array(
            [name in self.known for name in self.names], dtype=np.bool_
        )
        row = {name: place for place, name in enumerate(self.known)}
        self._rows = np.array([row[name] for name in self.names if name in row], dtype=np.intp)
        facts = {member.name: member for member in (*references, *members)}  # the pool's own word counts
        compared = [facts[name] for name in self.known if name in facts]
        self._compared = np.array([row[member.name] for member in compared], dtype=np.intp)
        self._weights = _weights([m for m in members if m.name not in row], compared)

    def fill(self, prediction: Prediction) -> Prediction:
        """The prediction over the pool's members, in its order, from one over the router's."""
        if prediction.members != self.known:
            raise ConfigError(
                f"expected a prediction over the {len(self.known)} members this prior was made for, "
                f"found one over {len(prediction.members)} others. Make a new Prior for the new router."
            )
        if self.names == self.known:
            return prediction
        if self.measured.all():
            arrays = (getattr(prediction, field).take(self._rows, axis=1) for field in _ARRAYS)
            return Prediction(self.names, *arrays)
        guess, columns = self._guess(prediction), {}
        for field in _ARRAYS:
            source: FloatArray = getattr(prediction, field)
            column = np.empty((len(source), len(self.names)), dtype=source.dtype)
            column[:, self.measured] = source[:, self._rows]
            column[:, ~self.measured] = guess[field]
            columns[field] = column
        return Prediction(members=self.names, **columns)

    def _guess(self, prediction: Prediction) -> dict[str, FloatArray]:
        """Per field ``(n_prompts, n_unmeasured)``, or something that broadcasts to it."""
        if not len(self._compared):
            return _flat(prediction)
        reward, std, tokens, p95 = (getattr(prediction, field)[:, self._compared] for field in _ARRAYS)
        to_mean = self._weights.T  # float64 (n_compared, n_unmeasured)
        mean = reward @ to_mean
        # Moments around a point near the mean: those around 0 would cancel each other's digits.
        centre = reward.mean(axis=1, keepdims=True)
        spread = ((reward - centre) ** 2) @ to_mean - (mean - centre) ** 2
        wide = np.sqrt(np.maximum(spread, 0) + (std**2) @ to_mean)
        return {
            "reward": np.clip(mean, 0, 1),
            "reward_std": np.maximum(wide, LEAST_STD),
            "output_tokens": tokens @ to_mean,
            "output_tokens_p95": np.maximum(2 * (p95 @ to_mean), p95.max(axis=1, keepdims=True)),
        }


def _weights(unmeasured: Sequence[Member], compared: Sequence[Member]) -> npt.NDArray[np.float64]:
    """``(n_unmeasured, n_compared)``, each row summing to 1."""
    decades = np.subtract.outer(_log_price(unmeasured), _log_price(compared))
    same_kind = np.equal.outer(
        *(np.array([m.kind for m in side], dtype=object) for side in (unmeasured, compared))
    )
    alike = np.where(same_kind, 1.0, OTHER_KIND) * np.exp(-0.5 * (decades / SAME_PRICE) ** 2)
    weights: npt.NDArray[np.float64] = STRANGER + alike
    return weights / weights.sum(axis=1, keepdims=True) if len(compared) else weights


def _log_price(members: Sequence[Member]) -> npt.NDArray[np.float64]:
    """``(n_members,)`` decades; what is free counts as a tenth of a cent per million tokens."""
    prices = [
        0.75 * member.usd_per_million_input + 0.25 * member.usd_per_million_output for member in members
    ]
    return np.log10(np.maximum(np.array(prices, dtype=np.float64), 1e-3))


def _flat(prediction: Prediction) -> dict[str, FloatArray]:
    guess: dict[str, FloatArray] = {"reward": np.array(FLAT_REWARD), "reward_std": np.array(FLAT_STD)}
    if prediction.members:
        tokens, p95 = prediction.output_tokens, prediction.output_tokens_p95
        guess["output_tokens"] = tokens.mean(axis=1, keepdims=True)
        guess["output_tokens_p95"] = 2 * p95.max(axis=1, keepdims=True)
    else:
        guess["output_tokens"], guess["output_tokens_p95"] = np.array(FLAT_TOKENS), np.array(FLAT_TOKENS_P95)
    return guess
