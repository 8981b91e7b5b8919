import pytest

from cluster.errors import InputError
from tasks.labellers.judge.rubric import DEFAULT_RUBRIC, Hearing, check_rubric, read_verdict, settle
from tasks.labellers.protocol import Question

pytestmark = pytest.mark.labels

QUESTION = Question(key="k", messages=[{"role": None, "content": "P"}], first="F", second="S")


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "A"),
        ("A is better.\n[[B]]", "B"),
        ("[[A]] is tempting, but no.\n\nFinal verdict: **[[tie]]**.\n \n", "TIE"),
        ("as MT-Bench says\n[[C]]", "TIE"),
        ("[[ B ]]", "B"),
        ("[[A]]\n[[A]] again [[A]]", "A"),
    ],
)
def test_the_verdict_stands_in_brackets_on_the_last_line(reply: str, verdict: str) -> None:
    assert read_verdict(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    ["", "  \n", "A", "[A]", "[[A]]\nbut I am not sure", "[[A]] or [[B]]", "[[D]]", "[[AB]]", "[[first]]"],
)
def test_a_reply_without_one_verdict_at_its_end_has_none(reply: str) -> None:
    assert read_verdict(reply) == "NONE"


def test_a_reply_that_was_cut_has_no_verdict() -> None:
    assert read_verdict("[[A]]", is_cut=True) == "NONE"


@pytest.mark.parametrize(
    ("asked", "turned", "choice"),
    [
        ("A", "B", "first"),
        ("B", "A", "second"),
        ("TIE", "TIE", "tie"),
        ("A", "NONE", "abstain"),
        ("NONE", "TIE", "abstain"),
        ("NONE", "NONE", "abstain"),
    ],
)
def test_both_orders_have_to_agree(asked: str, turned: str, choice: str) -> None:
    assert settle(asked, turned, on_disagreement="tie") == choice
    assert settle(asked, turned, on_disagreement="abstain") == choice


@pytest.mark.parametrize(("asked", "turned"), [("A", "A"), ("B", "B"), ("A", "TIE"), ("TIE", "A")])
def test_a_disagreement_between_the_orders_is_what_the_config_says(asked: str, turned: str) -> None:
    assert settle(asked, turned, on_disagreement="tie") == "tie"
    assert settle(asked, turned, on_disagreement="abstain") == "abstain"


def test_the_turned_hearing_shows_the_second_response_first() -> None:
    asked, turned = Hearing.of(QUESTION), Hearing.of(QUESTION, turned=True)
    rubric = "{prompt}|{first}|{second}"
    assert (asked.render(rubric), turned.render(rubric)) == ("P|F|S", "P|S|F")


def test_braces_and_halves_of_characters_in_a_response_reach_the_judge_as_text() -> None:
    hearing = Hearing(prompt="{second}", first="{0.__class__} {first}", second="\ud83d")
    assert hearing.render("{prompt} {first} {second} {{}}") == "{second} {0.__class__} {first} ? {}"


def test_the_default_rubric_fits() -> None:
    check_rubric(DEFAULT_RUBRIC)


@pytest.mark.parametrize(
    ("rubric", "found"),
    [
        ("{prompt} {first}", r"\{prompt\}, \{first\}: expected each"),
        ("nothing", r"\(none\)"),
        ("{prompt} {first} {second} {score}", r"\{score\}"),
        ("{prompt} {first.__class__} {second}", r"\{first.__class__\}"),
        ("{prompt} {first!r} {second}", r"\{first!r\}"),
        ("{prompt} {first:>9} {second}", "fields"),
        ('{prompt} {first} {second} {"verdict": 1}', r"\{\"verdict\"\}"),
        ("{prompt} {first} {second", "no template"),
        ("{prompt} {first} {second} }", "no template"),
    ],
)
def test_a_rubric_that_does_not_fit_is_refused_with_what_it_holds(rubric: str, found: str) -> None:
    with pytest.raises(InputError, match=found) as refused:
        check_rubric(rubric)
    assert "{{ }}" in str(refused.value)
