"""Where should a router not be trusted? One line per doubt, each read off what it learned from."""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ensemble.bundle import Manifest
from ensemble.learning.fit import USUAL_TOKENS
from ensemble.learning.tables import OutcomeTable

FEW_PROMPTS = 300
MOST_NAMED = 6
SAMPLE = 2000  # prompts that are looked at for their script and language
ENGLISH = frozenset(
    {"the", "of", "and", "is", "to", "in", "what", "which", "for", "that", "are", "with", "how"}
)


def caveats(manifest: Manifest, part: OutcomeTable, retired: Mapping[str, datetime.date]) -> Iterator[str]:
    """``part`` is the table that was learned from, ``retired`` the members' last days."""
    yield _language(part.prompts) if "prompts_without_text" not in manifest.recipe else _hashed(manifest)
    yield _tasks(part)
    yield from _members(manifest, part)
    yield from _links(part)
    yield from _tokens(part)
    yield from _prices(manifest, part)
    yield from _withdrawn(manifest, retired)
    yield from _tuned(manifest)


def _language(prompts: Sequence[str]) -> str:
    sample = prompts[:: max(1, len(prompts) // SAMPLE)]
    letters = Counter(
        unicodedata.name(c, "?").split()[0].title() for text in sample for c in text[:500] if c.isalpha()
    )
    words = [set(re.findall(r"[a-z]+", text.lower())) for text in sample]
    english = sum(len(found & ENGLISH) >= 2 for found in words) / max(len(words), 1)
    common = [(name, n) for name, n in letters.most_common(3) if n > letters.total() / 1000]
    scripts = ", ".join(f"{name} {n / letters.total():.1%}" for name, n in common)
    low, high = np.quantile([len(text) for text in prompts], [0.05, 0.95])
    return (
        f"Other languages and lengths than it saw. The letters of its prompts: {scripts or 'none'}; "
        f"{english:.0%} of the prompts hold common English words; nine in ten are {low:,.0f} to {high:,.0f} "
        "characters long. Elsewhere it extrapolates, and `reward_std` is the only warning."
    )


def _hashed(manifest: Manifest) -> str:
    return (
        "Other languages and lengths than it saw, whichever these are: the log it learned from kept no text "
        f"of {manifest.recipe['prompts_without_text']:,} prompts. Nor is it known then which prompts of "
        "another table it has seen, and their near-duplicates were not held together."
    )


def _tasks(part: OutcomeTable) -> str:
    named = {task for task in part.tasks if task is not None}
    known = f"the {len(named)} tasks above" if named else "the prompts of the sources above"
    return (
        f"Work unlike {known}, and rewards that measure something else than theirs did: it predicts the "
        "reward of these tables, by their own measure. For other work collect outcomes of your own and train "
        "on them."
    )


def _members(manifest: Manifest, part: OutcomeTable) -> Iterator[str]:
    few = [f"{note.name} ({note.n_prompts})" for note in manifest.members if note.n_prompts < FEW_PROMPTS]
    if few:
        yield f"Members seen on fewer than {FEW_PROMPTS} prompts: {_listed(few)}."
    source = np.array(part.source)
    names = list(dict.fromkeys(part.source))
    seen = np.array([part.observed[source == name].any(axis=0) for name in names])
    if not seen.all():
        yield (
            f"Members on sources they were never seen on: {int((~seen).sum())} of {seen.size} combinations. "
            "There a member's reward is inferred from its ability elsewhere, against members that saw both, "
            "and its `reward_std` is wide."
        )


def _links(part: OutcomeTable) -> Iterator[str]:
    """Members can be compared only through prompts they share, or through others that share prompts."""
    from scipy.sparse.csgraph import connected_components

    seen = part.observed.astype(np.float32)
    _, group = connected_components(seen.T @ seen > 0, directed=False)
    answered = np.flatnonzero(part.observed.any(axis=0))
    if len(set(group[answered])) > 1:
        kept_apart = dict.fromkeys(group[answered])
        groups = [_listed([part.members[m] for m in answered if group[m] == g]) for g in kept_apart]
        yield (
            "Comparisons between these groups of members, which share no prompt, not even through others: "
            f"{'; '.join(groups)}. They rest on the prompts of each group being equally hard on average."
        )
    if (part.observed.sum(axis=1) <= 1).mean() > 0.5:
        yield (
            "Differences between members on single prompts: most prompts were answered by one member only, "
            "so a hard prompt can't be told from a weak answer, and the choice rests on averages."
        )


def _tokens(part: OutcomeTable) -> Iterator[str]:
    known = np.isfinite(part.output_tokens)
    if not known.any():
        yield (
            f"Output tokens: none were recorded. {USUAL_TOKENS:.0f} are assumed of every answer, so costs "
            "are as right as that guess."
        )
        return
    without = [name for name, some in zip(part.members, np.any(known, axis=0), strict=True) if not some]
    if without:
        yield f"Output tokens of {_listed(without)}: never recorded, taken to be like the other members'."


def _prices(manifest: Manifest, part: OutcomeTable) -> Iterator[str]:
    without = [note.name for note in manifest.members if note.usd_per_million_output is None]
    costly = np.any(np.isfinite(part.cost_usd), axis=0)
    free = [name for name, some in zip(part.members, costly, strict=True) if name in without and not some]
    one_sided = [
        note.name
        for note in manifest.members
        if note.usd_per_million_output == 0 and (note.usd_per_million_input or 0) > 0
    ]
    if free:
        yield f"Prices measured: none of {_listed(free)}; the figures above count them as free."
    if mixed := [name for name in without if name not in free]:
        yield (
            f"Prices measured: none of {_listed(mixed)}; what their answers cost is known, but not how long "
            "the prompts were."
        )
    if one_sided:
        yield (
            f"Prices measured of {_listed(one_sided)}: their whole cost lies on the input, as the table told "
            "no output tokens or no cost of them."
        )
    yield (
        f"The prices above in any case: they were in force when the outcomes were measured, not on "
        f"{manifest.created}. Decisions are made at the prices of your pool; savings change with them."
    )


def _withdrawn(manifest: Manifest, retired: Mapping[str, datetime.date]) -> Iterator[str]:
    made = datetime.date.fromisoformat(manifest.created)
    days = {note.name: retired[note.name] for note in manifest.members if note.name in retired}
    for when, chosen in (
        ("already withdrawn by their provider", {n: d for n, d in days.items() if d <= made}),
        ("to be withdrawn by their provider", {n: d for n, d in days.items() if d > made}),
    ):
        if chosen:
            named = [f"{name} ({day})" for name, day in sorted(chosen.items(), key=lambda item: item[1])]
            yield f"Members {when}, going by litellm's map when this was made: {', '.join(named)}."


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _tuned(manifest: Manifest) -> Iterator[str]:
    if n_tuned := manifest.recipe.get("encoder_tuned_on"):
        yield (
            f"Tasks it never saw. Its encoder was trained on {n_tuned:,} prompts of every task it knows, and "
            "how unsure to be about a task left out was judged with that encoder: a new one may look more "
            "familiar than it is, and `reward_std` there be too small."
        )
