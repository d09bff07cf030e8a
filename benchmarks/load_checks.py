"""What must hold in a load run; each check names its evidence.

Which images were computed together is told by `find_batches`.
"""

import itertools
import statistics
from collections import Counter, defaultdict

from benchmarks.load_report import (
    Check,
    PhaseResult,
    PinTest,
    Run,
    Span,
    percentile,
    pin_evidence,
    rows,
)
from server.answered_batches import Batch, find_batches

HIGH, LOW = 1.2, 0.5
"""Multiples of the capacity from which r must rise, and below which it must come back."""
OVERLOAD = 3.0
"""Beyond what any degree carries: some requests must be refused."""
COME_BACK_S = 20.0
"""Shorter calm phases need not suffice: r falls one degree at a time."""
SANE_RETRY_S = (1, 60)
CLIENT_LAG_S = 0.1
SAME_SCORE = 1e-3
"""Rounding differs with the size of the batch; another degree moves most scores by more."""
SAME_SHARE = 0.99
"""Two similarities may be equal but for rounding, so not all scores must agree."""


def check(run: Run) -> list[Check]:
    """Judge the run."""
    checks = [one(run) for one in (_no_failure, _none_dropped, _client_kept_up)]
    checks += [_degrees_unmixed(run), _scores_agree(run)]
    for span, row in zip(run.spans, rows(run), strict=True):
        if span.phase.multiple >= HIGH:
            rose = row.r_max is not None and row.r_max > run.r_source
            checks.append(Check(f"{span.phase}: r rises", rose, f"up to {row.r_max}"))
        if span.phase.multiple >= OVERLOAD:
            checks.append(_refused_well(span, row))
        if span.phase.multiple <= LOW and span.phase.seconds >= COME_BACK_S:
            back = row.r_last == run.r_source
            seen = f"r={row.r_last} at the end, r_source={run.r_source}"
            checks.append(Check(f"{span.phase}: r comes back", back, seen))
    if run.pin:
        checks += _pin_took_effect(run, run.pin)
    return checks


def _no_failure(run: Run) -> Check:
    bad = Counter(a.status for a in run.all_answers if a.status not in (0, 200, 429))
    return Check("no status but 200 and 429", not bad, f"others: {dict(bad) or 'none'}")


def _none_dropped(run: Run) -> Check:
    errors = [a.error for a in run.all_answers if a.status == 0] + run.watch.failures
    seen = f"{len(errors)} of {len(run.all_answers)} requests and {len(run.watch.samples)} samples"
    kinds = "; ".join(f"{n} × {error}" for error, n in Counter(errors).most_common(3))
    slowest = max((sample.took_s for sample in run.watch.samples), default=0.0)
    seen += f", {kinds or 'none'}; slowest GET /compression {1000 * slowest:.0f} ms"
    return Check("no dropped connection", not errors, seen)


def _degrees_unmixed(run: Run) -> Check:
    found = find_batches(run.all_answers)
    mixed = [batch for batch in found if len(batch.degrees) > 1]
    whole = sum(batch.seen == batch.size for batch in found)
    seen = f"{len(mixed)} of {len(found)} batches mix; of {whole} every image was seen"
    return Check("no batch mixes degrees", not mixed, seen)


def _scores_agree(run: Run) -> Check:
    """The stated degree is the computed one: one photograph at one degree has one score."""
    scores: dict[tuple[int, int], list[float]] = defaultdict(list)
    for answer in run.answers:
        for image in answer.images:
            scores[answer.photo, image.r].append(image.score)
    centres = {key: statistics.median(values) for key, values in scores.items()}
    near = [abs(v - centres[key]) <= SAME_SCORE for key, values in scores.items() for v in values]
    pairs = [
        abs(centres[photo, r] - centres[other, r2]) > SAME_SCORE
        for (photo, r), (other, r2) in itertools.combinations(sorted(centres), 2)
        if photo == other
    ]
    share, told_apart = sum(near) / max(1, len(near)), sum(pairs) / max(1, len(pairs))
    seen = (
        f"{share:.1%} of {len(near)} scores within {SAME_SCORE:g} of their photograph's median at "
        f"the stated r; {told_apart:.0%} of {len(pairs)} pairs of degrees differ by more"
    )
    return Check("stated degrees agree with the scores", bool(near) and share >= SAME_SHARE, seen)


def _client_kept_up(run: Run) -> Check:
    lag = percentile([a.sent_s - a.due_s for a in run.answers], 99)
    seen = f"p99 {1000 * lag:.1f} ms late"
    return Check("the client sent what was due", lag <= CLIENT_LAG_S, seen)


def _refused_well(span: Span, row: PhaseResult) -> Check:
    refused, answered = row.statuses.get(429, 0), row.statuses.get(200, 0)
    low, high = SANE_RETRY_S
    sane = row.retry_after_s is not None and low <= row.retry_after_s <= high
    passed = refused > 0 and row.retry_after_share == 1 and sane
    passed = passed and refused + answered == sum(row.statuses.values())
    seen = f"{refused} refused (Retry-After median {row.retry_after_s} s), {answered} answered"
    if not refused:
        seen += "; was it too short to fill the queue? lengthen it or lower --queue-size"
    return Check(f"{span.phase}: 429 with Retry-After, the rest answered", passed, seen)


def _pin_took_effect(run: Run, pin: PinTest) -> list[Check]:
    told = pin_evidence(run, pin)
    none_late = told["answers_with_another_r"] == 0 and told["batches_with_another_r"] <= 1
    proven = pin.r_before != pin.r and told["answers_begun_after"] > 0
    seen = (
        f"from r={pin.r_before}: of {told['answers_begun_after']} requests begun after the reply, "
        f"{told['answers_with_another_r']} got another r; {told['batches_with_another_r']} batch "
        f"with another r ended after it; reply took {told['reply_ms']:.0f} ms"
    )
    files = [a for a in pin.multiparts if a.status == 200]
    alike = all(len(batch.degrees) == 1 for answer in files for batch in find_batches([answer]))
    counts = "; ".join(_parts(find_batches([answer])) for answer in files)
    return [
        Check(f"PUT r={pin.r} holds within one batch", none_late and proven, seen),
        Check(
            "requests of several files: one r per batch",
            bool(files) and alike,
            f"{len(files)} of {len(pin.multiparts)} answered; images at r: {counts}",
        ),
    ]


def _parts(batches: list[Batch]) -> str:
    return "+".join(f"{b.seen} at {'/'.join(map(str, sorted(b.degrees)))}" for b in batches)
