import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tasks.labellers.ledger import question_key, shown, shown_swapped
from tasks.labellers.protocol import Question

pytestmark = pytest.mark.labels

SHORT = st.text(alphabet='ab",', max_size=4)
PLAIN = ({"role": None, "content": "p"},)


@given(st.text(), st.text(), st.text())
def test_a_key_ignores_the_order_of_the_responses(prompt: str, first: str, second: str) -> None:
    key = question_key(prompt, first=first, second=second)
    assert key == question_key(prompt, first=second, second=first)
    assert len(key) == 64


@given(st.tuples(SHORT, SHORT, SHORT), st.tuples(SHORT, SHORT, SHORT))
def test_a_key_tells_contents_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assume((one[0], sorted(one[1:])) != (other[0], sorted(other[1:])))
    assert question_key(one[0], first=one[1], second=one[2]) != question_key(other[0], first=other[1], second=other[2])


def test_half_of_the_keys_are_shown_swapped_and_a_seed_changes_which() -> None:
    keys = [question_key("p", first=str(index), second="b") for index in range(1000)]
    swapped = [shown_swapped(key, 0) for key in keys]
    assert swapped == [shown_swapped(key, 0) for key in keys] != [shown_swapped(key, 1) for key in keys]
    assert 400 < sum(swapped) < 600


@given(st.text(), st.text(), st.integers(0, 3))
def test_a_question_is_shown_in_one_order_however_it_is_turned(first: str, second: str, seed: int) -> None:
    key = question_key("p", first=first, second=second)
    asked = Question(key=key, messages=PLAIN, first=first, second=second)
    turned = Question(key=key, messages=PLAIN, first=second, second=first)
    assert shown(asked, seed) == shown(turned, seed)
    assert (shown(asked, seed).first == max(first, second)) == shown_swapped(key, seed) or first == second
