"""MLflow's review queues as a place where people label: open asks become items, opinions become answers."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass

from cluster.errors import InputError
from cluster.preflight import reachable
from cluster.review_items import BRIEF, Item, Opinion, Preview, Reviewed, Scheme, verbatim
from cluster.reviews import NOBODY, Reviews, ReviewsUnsupportedError
from cluster.tracking import LINEAGE_TAG, ROUND_TAG, Tracker
from tasks.labellers.ledger import Ledger, Receipt
from tasks.labellers.protocol import Answer, Ask, Choice, Question, Workplace
from tasks.progress import run_logger

SCHEME = "preference"
CHOICES: Mapping[str, Choice] = {"A": "first", "B": "second", "tie": "tie", "skip": "abstain"}
INSTRUCTIONS = "Which response is better? Say tie if neither is, skip if you can't say."
KEY_TAG = "pairwright.key"
LABELLER_TAG = "pairwright.labeller"
PLACE_TAG = "pairwright.labelling"
"""Tag of a round's run: the address at which its pairs are labelled."""
SETTLER = "pairwright"
"""Who marks a pair as judged that was answered elsewhere."""

LIMITS = (200_000, 400, 300, 200, 100, 10)
"""Characters shown of prompt and responses: as many as MLflow's pages take, or as its database keeps."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What came of looking into MLflow: receipts of new answers, and what could not be used, as sentences."""

    receipts: Sequence[Receipt]
    refused: Sequence[str]


def offer(asks: Sequence[Ask], labeller: str, workplace: Workplace, *, instructions: str = INSTRUCTIONS) -> None:
    """Put every pair that is asked into the round's review queue, once; a pair that is there stays as it is.

    `labeller` is the identity under which the ledger keeps the answers. The round's MLflow run gets the address as a
    tag. Nothing happens where there is no run, or, with a warning, where the tracking store has no review queues.
    """
    if workplace.tracker is None or workplace.run is None or not asks:
        return
    reviews = Reviews(tracker=workplace.tracker)
    questions = {ask.question.key: ask.question for ask in asks}.values()
    items = [_item(question, labeller, workplace) for question in questions]
    scheme = Scheme(name=SCHEME, options=list(CHOICES), instruction=instructions)
    try:
        queue = reviews.offer(f"{workplace.lineage} round {workplace.round}", scheme, items, run=workplace.run)
    except ReviewsUnsupportedError as error:
        run_logger().warning("%s: label with `pairwright label %s`", error, workplace.lineage)
        return
    workplace.tracker.set_tags(workplace.run, {PLACE_TAG: reviews.address(queue)})


def take_in(ledger: Ledger, tracker: Tracker, lineage: str, *, round_number: int | None = None) -> Intake:
    """Give the ledger what was said in MLflow of a lineage's pairs, in one round or in all of them, and is new.

    Looking again changes nothing. A pair that was answered elsewhere is marked as reviewed; one that wants further
    answers is put back for other reviewers.

    Raises:
        InputError: MLflow doesn't answer.
    """
    reachable(tracker.tracking_uri, attempts=1)
    reviews, receipts, refused = Reviews(tracker=tracker), [], []
    where = {} if round_number is None else {ROUND_TAG: f"{round_number:03d}"}
    items = list(reviews.read({LINEAGE_TAG: lineage, **where}))
    for item, opinion in _new(items, ledger, lineage):
        try:
            receipts.append(_hand_over(reviews, item, opinion, ledger))
        except InputError as error:
            refused.append(f"{opinion.reviewer} on pair {item.tags[KEY_TAG][:12]}: {error}")
    for number in {int(item.tags[ROUND_TAG]) for item in items}:
        _settle(reviews, [item for item in items if int(item.tags[ROUND_TAG]) == number], ledger, (lineage, number))
    return Intake(receipts=receipts, refused=refused)


def _item(question: Question, labeller: str, workplace: Workplace) -> Item:
    """A pair with nothing that tells where it came from; the labeller is kept with it for its answers."""
    previews = [_preview(question, limit) for limit in LIMITS]
    parts = {name: getattr(question, name) for name in ("key", "messages", "first", "second")}
    return Item(
        name=question.key,
        shown=previews[0],
        brief=next(each for each in previews if max(map(len, astuple(each))) <= BRIEF),
        content={"question": parts, "labeller": labeller},
        tags={
            KEY_TAG: question.key,
            LABELLER_TAG: labeller,
            LINEAGE_TAG: workplace.lineage,
            ROUND_TAG: f"{workplace.round:03d}",
        },
    )


def _preview(question: Question, limit: int) -> Preview:
    first, second = verbatim(question.first, limit), verbatim(question.second, limit)
    return Preview(request=verbatim(question.prompt, limit), response=f"**A**\n\n{first}\n\n**B**\n\n{second}")


def _new(items: Sequence[Reviewed], ledger: Ledger, lineage: str) -> list[tuple[Reviewed, Opinion]]:
    """What the ledger lacks; where a pair is open, the ledger's word about who answered counts above MLflow's mark."""
    annotators: dict[str, set[str]] = {}
    for each in ledger.open_questions(lineage):
        annotators.setdefault(each.question.key, set()).update(each.annotators)
    return [
        (item, opinion)
        for item in items
        for opinion in item.opinions
        if not opinion.taken
        or (_choice(opinion) and opinion.reviewer not in annotators.get(item.tags[KEY_TAG], {opinion.reviewer}))
    ]


def _choice(opinion: Opinion) -> Choice | None:
    return CHOICES.get(opinion.value) if isinstance(opinion.value, str) else None


def _hand_over(reviews: Reviews, item: Reviewed, opinion: Opinion, ledger: Ledger) -> Receipt:
    """Mark an opinion as used once the ledger has it; one outside the scheme is marked, too, so that it's said once."""
    choice = _choice(opinion)
    if choice is None:
        reviews.take(item.trace, opinion)
        raise InputError(f"found {opinion.value!r} in MLflow, expected {', '.join(CHOICES)}: answer again there")
    content = reviews.content(item.trace)
    answer = Answer(
        choice=choice,
        annotator=opinion.reviewer,
        rationale=opinion.comment,
        detail={"review": opinion.identifier},
    )
    receipt = ledger.answer(Question(**content["question"]), content["labeller"], answer)
    reviews.take(item.trace, opinion)
    return receipt


def _settle(reviews: Reviews, items: Sequence[Reviewed], ledger: Ledger, place: tuple[str, int]) -> None:
    """Bring the queue of a round in line with the ledger, as long as the round wants answers or has all of them."""
    lineage, number = place
    wanted = {each.question.key for each in ledger.open_questions(lineage) if each.round == number}
    progress = ledger.progress(lineage, number)
    if not wanted and (progress.num_asked == 0 or progress.num_answered < progress.num_asked):
        return
    pending = {trace for queue in {item.queue for item in items} for trace in reviews.pending(queue)}
    for item in items:
        is_wanted, others = item.tags[KEY_TAG] in wanted, {each.reviewer for each in item.opinions} - {NOBODY}
        if item.trace in pending and not is_wanted:
            reviews.settle(item.queue, item.trace, by=SETTLER)
        elif item.trace not in pending and is_wanted and others:
            reviews.settle(item.queue, item.trace, by=None)
