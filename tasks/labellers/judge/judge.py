"""A judge: a language model behind an OpenAI-compatible endpoint, asked in both orders of the responses."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.errors import InputError
from cluster.traces import Trace
from tasks.labellers.judge.endpoint import Endpoint, Reply
from tasks.labellers.judge.measures import (
    ASKED,
    REFUSED,
    RETRIES,
    SECONDS,
    TOKENS_IN,
    TOKENS_OUT,
    TURNED,
    judge_measures,
)
from tasks.labellers.judge.rubric import (
    CHOICES,
    DEFAULT_RUBRIC,
    Disagreement,
    Hearing,
    check_rubric,
    settle,
)
from tasks.labellers.judge.session import Case, hear
from tasks.labellers.judge.traces import Scribe, trace
from tasks.labellers.protocol import Answer, Answered, Ask, Label, Question, Workplace

TEMPLATE_TOKENS = 512
"""The most that a chat template adds to a message, its own system prompt included."""


@dataclass(frozen=True, kw_only=True)
class TokenPrices:
    """What an endpoint takes for a million tokens, in the currency of the budget; a server of your own takes none."""

    input: float = 0.0
    output: float = 0.0

    def __post_init__(self) -> None:
        for name, price in (("input", self.input), ("output", self.output)):
            if not 0 <= price < math.inf:
                raise InputError(f"the judge's prices.{name} is {price}: expected a finite number, 0 or more")

    def of(self, num_input: int, num_output: int) -> float:
        """The price of one request."""
        return (num_input * self.input + num_output * self.output) / 1e6


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Asks a model which response is better, in both orders; what both orders say counts, see `settle`.

    A reply without a verdict, one that the limit of tokens cuts, and a conversation that the endpoint doesn't take
    are abstentions, never ties. There is no probability: after its reasons a judge is all but certain of its own
    verdict, so the likelihood of the last token says nothing of how often it errs; `repeats` at a temperature do.
    Repetition r is asked with seed + r.

    A cost is what the endpoint counted, at `prices`; of a reply whose tokens it didn't count, the bound. Attempts
    that brought no reply have no count, and a provider may bill them: the reserve (`price`) covers them too. Where
    the second order brings an error after the first was answered, the pair is asked anew in both by the next attempt
    at the round, and what that first reply cost stands in no account.
    """

    kind: Literal["judge"] = "judge"
    model: str
    endpoint: Endpoint = field(default=Endpoint())
    prices: TokenPrices = field(default=TokenPrices())
    rubric: str = DEFAULT_RUBRIC
    temperature: float | None = 0.0
    """None: the endpoint's own, for models that take no other."""
    seed: int | None = 0
    """None: none is sent; vLLM 0.32 on a CPU, for one, can crash by seeds at a temperature above 0."""
    max_tokens: int = 1024
    """Of one reply, reasons included."""
    on_disagreement: Disagreement = "tie"
    constrained: bool = False
    """Have a vLLM server allow nothing but a verdict: quick and always parsable, but without reasons."""

    def __post_init__(self) -> None:
        check_rubric(self.rubric)
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise InputError(f"the judge's temperature is {self.temperature}: expected a finite number, 0 or more")
        if self.max_tokens < 1:
            raise InputError(f"the judge's max_tokens is {self.max_tokens}: expected 1 or more")

    @property
    def identity(self) -> str:
        """The model and all that shapes its replies, as JSON; not where it is served."""
        fields = {
            "kind": self.kind,
            "model": self.model,
            "rubric": self.rubric,
            "temperature": None if self.temperature is None else float(self.temperature),
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "on_disagreement": self.on_disagreement,
            "constrained": self.constrained,
        }
        return json.dumps(fields, sort_keys=True)

    @property
    def repeats_itself(self) -> bool:
        """At temperature 0 it does."""
        return self.temperature == 0

    def price(self, question: Question) -> float:
        """The most that both orders can cost with all their attempts: a token has at least one byte."""
        return 2 * (self.endpoint.max_retries + 1) * self._bound(question)

    def check(self) -> None:
        """See that the endpoint answers and serves the model.

        Raises:
            InputError: it doesn't, or the key is missing.
        """
        served = self.endpoint.models()
        if self.model not in served:
            raise InputError(
                f"the judge at {self.endpoint.address} has no model {self.model!r}: "
                f"set labeller.model to one that it has ({', '.join(sorted(served)) or 'none'}), or start it with yours"
            )

    def __call__(self, asks: Sequence[Ask], workplace: Workplace) -> Iterator[Answered]:
        """Answer some pairs at a time, as they are finished; their traces are written once they are kept.

        Raises:
            InputError: the endpoint refuses the key, the model or the settings.
            LabellerError: the endpoint gave no reply in all its attempts.
        """
        with Scribe(workplace) as scribe, closing(hear(asks, self.endpoint, self._request)) as cases:
            for finished in cases:
                answers = [self._answer(case) for case in finished]
                yield [(case.ask, answer) for case, answer in zip(finished, answers, strict=True)]
                if scribe.is_writing:
                    scribe.write(self._traces(finished, answers, workplace))

    def measures(self, labels: Sequence[Label]) -> Mapping[str, float]:
        """Position bias, replies without a verdict, tokens, cost, retries and seconds; see `judge_measures`."""
        return judge_measures(labels)

    def _request(self, hearing: Hearing, repetition: int) -> dict[str, Any]:
        """The body of a request, as OpenAI's reference and, for `structured_outputs`, vLLM's document it."""
        optional = {
            "temperature": self.temperature,
            "seed": None if self.seed is None else self.seed + repetition,
            "structured_outputs": {"choice": list(CHOICES)} if self.constrained else None,
        }
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": hearing.render(self.rubric)}],
            self.endpoint.limit_name: self.max_tokens,
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _answer(self, case: Case) -> Answer:
        replies = (case.asked, case.turned)
        asked, turned = (reply.verdict for reply in replies)
        return Answer(
            choice=settle(asked, turned, on_disagreement=self.on_disagreement),
            rationale="\n\n".join(reply.refusal or reply.text for reply in replies),
            cost=sum(self._cost(reply, case.ask.question) for reply in replies),
            detail={
                ASKED: asked,
                TURNED: turned,
                REFUSED: float(any(reply.refusal for reply in replies)),
                TOKENS_IN: float(sum(reply.tokens_in or 0 for reply in replies)),
                TOKENS_OUT: float(sum(reply.tokens_out or 0 for reply in replies)),
                RETRIES: float(sum(reply.num_retries for reply in replies)),
                SECONDS: sum(reply.ended_ns - reply.started_ns for reply in replies) / 1e9,
            },
        )

    def _cost(self, reply: Reply, question: Question) -> float:
        if reply.tokens_in is None or reply.tokens_out is None:
            return 0.0 if reply.refusal else self._bound(question)
        return self.prices.of(reply.tokens_in, reply.tokens_out)

    def _bound(self, question: Question) -> float:
        num_bytes = len(Hearing.of(question).render(self.rubric).encode())
        return self.prices.of(num_bytes + TEMPLATE_TOKENS, self.max_tokens)

    def _traces(self, cases: Sequence[Case], answers: Sequence[Answer], workplace: Workplace) -> list[Trace]:
        return [
            trace(
                case,
                answer,
                requests=[
                    self._request(Hearing.of(case.ask.question, turned=turned), case.ask.repetition)
                    for turned in (False, True)
                ],
                identity=self.identity,
                workplace=workplace,
            )
            for case, answer in zip(cases, answers, strict=True)
        ]
