"""The words of a fault script: what one step says. Knows nothing of orders, time or sockets.

A step is written as one string: `[hold+...][effect_then:]answer[:argument...]`, for example `503`, `429:2`,
`400:integration`, `applied_then:reset` or `pause+applied_then:500`. `WORDS` lists every answer.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

Effect = Literal["rules", "none", "applied", "accepted"]


@dataclass(frozen=True, slots=True)
class Step:
    """How one request is answered; `str(step)` is the text that made it.

    `effect` is what happens to the order first: `rules` what the contract says; `none` nothing; `applied` the
    warehouse cancels, and Trackstar never learns of it; `accepted` the warehouse will act later, and `touches` its
    update time then, or does not (None: as it always does).
    """

    text: str
    answer: str = "ok"
    effect: Effect = "rules"
    status: int = 200
    origin: str = "trackstar"
    retry_after: str = ""
    seconds: float = 0.0
    size: int = 0
    target: str = ""
    touches: bool | None = None
    slow: float = 0.0
    pause: Literal["", "before", "after"] = ""

    def __str__(self) -> str:
        return self.text


OK = Step("ok")
READS_ONLY = frozenset({"stale", "fresh", "missing"})
WRITES_ONLY = frozenset({"open"})
# Steps that change what one order looks like, and nothing else about the answer.
VIEWS = READS_ONLY | {"ok", "wrong_id"}


def parse(text: str) -> Step:
    """Read one step; a ValueError says in one sentence what is wrong with it."""
    step, rest = Step(text), text
    while (held := _hold(step, rest.partition("+")[0])) is not None:
        step, rest = held, rest.partition("+")[2] or "ok"
    return _answer(step, rest)


def parse_all(texts: Iterable[str], *, reads: bool = False) -> list[Step]:
    """Read a whole script and refuse the words that make no sense for this kind of request."""
    if isinstance(texts, str):
        raise TypeError(f"A script is a list of steps, not the one string {texts!r}.")
    steps = [parse(text) for text in texts]
    for step in steps:
        if step.answer in (WRITES_ONLY if reads else READS_ONLY):
            raise ValueError(f"{step.text!r} is no step for a {'read' if reads else 'cancel'}.")
        if reads and (step.effect == "applied" or step.pause == "after"):
            raise ValueError(f"{step.text!r} changes the order, and a read cannot.")
    return steps


def _hold(step: Step, word: str) -> Step | None:
    if word == "pause":
        return replace(step, pause="before")
    if word == "pause_applied":
        return replace(step, pause="after")
    if word.startswith("slow:"):
        return replace(step, slow=_seconds(word.removeprefix("slow:"), step.text))
    return None


def _answer(step: Step, text: str) -> Step:
    effect: Effect | None = None
    if text.startswith("applied_then:"):
        effect, text = "applied", text.removeprefix("applied_then:")
    elif text.startswith("succeeded_then:"):
        effect, text = "rules", text.removeprefix("succeeded_then:")
    word, _, argument = text.partition(":")
    read = _status if word.isdecimal() else WORDS.get(word)
    if read is None:
        raise ValueError(f"{step.text!r} is no step: {word!r} is neither a status nor one of {', '.join(WORDS)}.")
    answered = replace(step, **read(word, argument, step.text))
    return answered if effect is None else replace(answered, effect=effect)


def _status(word: str, argument: str, text: str) -> dict[str, Any]:
    origin, _, retry_after = argument.partition(":")
    if origin[:1].isdecimal():
        origin, retry_after = "", origin
    fields = {"origin": origin or "trackstar", "retry_after": retry_after}
    return {"answer": "status", "effect": "none", "status": _code(word, text), **fields}


def _body(word: str, argument: str, text: str) -> dict[str, Any]:
    default = "502" if word == "html" else "200"
    return {"answer": word, "effect": "none", "status": _code(argument or default, text)}


def _bare(word: str, argument: str, text: str) -> dict[str, Any]:
    if argument:
        raise ValueError(f"{text!r} is no step: {word!r} takes nothing after a colon.")
    return {"answer": word}


def _lost(word: str, argument: str, text: str) -> dict[str, Any]:
    return _bare(word, argument, text) | {"effect": "none"}


def _hang(word: str, argument: str, text: str) -> dict[str, Any]:
    return {"answer": word, "effect": "none", "seconds": _seconds(argument, text)}


def _drip(word: str, argument: str, text: str) -> dict[str, Any]:
    return {"answer": word, "seconds": _seconds(argument, text)}


def _huge(word: str, argument: str, text: str) -> dict[str, Any]:
    if not argument.isdecimal():
        raise ValueError(f"{text!r} is no step: {word!r} needs a number of bytes, as in huge:5000000.")
    return {"answer": word, "size": int(argument)}


def _redirect(word: str, argument: str, text: str) -> dict[str, Any]:
    if not argument.isprintable():
        raise ValueError(f"{text!r} is no step: a Location holds no control characters.")
    return {"answer": word, "effect": "none", "status": 302, "target": argument or "/redirected"}


def _open(word: str, argument: str, text: str) -> dict[str, Any]:
    words = argument.split(":") if argument else []
    untouched = words[-1:] == ["untouched"] and bool(words.pop())
    ships = words[:1] == ["ship"] and bool(words.pop(0))
    if len(words) > 1:
        raise ValueError(f"{text!r} is no step: after open comes ship, a number of seconds, untouched, in this order.")
    due = _seconds(words[0], text) if words else 0.0 if ships else float("inf")
    return {
        "answer": word,
        "effect": "accepted",
        "seconds": due,
        "target": "fulfilled" if ships else "cancelled",
        "touches": False if untouched else None,
    }


def _wrong_id(word: str, argument: str, text: str) -> dict[str, Any]:
    if argument not in ("", "data", "outer"):
        raise ValueError(f"{text!r} is no step: wrong_id stands alone or before :data or :outer.")
    return {"answer": word, "target": argument or "both"}


def _interim(word: str, argument: str, text: str) -> dict[str, Any]:
    code, _, after = argument.partition(":")
    if not (code.isdecimal() and 100 <= int(code) < 200):  # noqa: PLR2004 - an interim HTTP status
        raise ValueError(f"{text!r} is no step: after interim comes a status from 100 to 199, as in interim:103:0.4.")
    return {"answer": word, "status": int(code), "seconds": _seconds(after or "0", text)}


def _trailed(word: str, argument: str, text: str) -> dict[str, Any]:
    return {"answer": word, "seconds": _seconds(argument or "0", text)}


def _bare_status(word: str, argument: str, text: str) -> dict[str, Any]:
    return {"answer": word, "status": _code(argument or "204", text)}


def _failing(word: str, argument: str, text: str) -> dict[str, Any]:
    return _bare(word, "", text) | {"effect": "none", "origin": argument or "integration"}


def _one_of(*forms: str) -> Callable[[str, str, str], dict[str, Any]]:
    def read(word: str, argument: str, text: str) -> dict[str, Any]:
        if argument not in forms:
            raise ValueError(f"{text!r} is no step: after {word} comes one of {', '.join(forms)}.")
        return {"answer": word, "target": argument}

    return read


def _stale(word: str, argument: str, text: str) -> dict[str, Any]:
    if not argument.isprintable():
        raise ValueError(f"{text!r} is no step: a status holds no control characters.")
    return {"answer": word, "target": argument}


def _code(word: str, text: str) -> int:
    code = int(word) if word.isdecimal() else 0
    if not 200 <= code <= 599:  # noqa: PLR2004 - a final HTTP status
        raise ValueError(f"{text!r} is no step: a status is a number from 200 to 599.")
    return code


def _seconds(word: str, text: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < 10**6:
        raise ValueError(f"{text!r} is no step: it needs a number of seconds, as in hang:30.")
    return seconds


# Every answer besides a plain status (`503`, `400:integration`, `429:2`, `503:none:2`).
WORDS: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "ok": _bare,
    "html": _body,
    "empty": _body,
    "list": _body,
    "redirect": _redirect,
    "reset": _lost,
    "close": _lost,
    "hang": _hang,
    "cut": _bare,
    "drip": _drip,
    "drip_head": _drip,
    "huge": _huge,
    "wrong_id": _wrong_id,
    # The promised answer in an unusual form, or with more around it.
    "coded": _one_of("gzip", "deflate", "raw_deflate", "unlabelled_gzip", "br", "mark", "utf-16"),
    "shown": _one_of("number", "nfc", "nfd", "upper"),
    "bare": _bare_status,
    "interim": _interim,
    "trailed": _trailed,
    "failing": _failing,
    "open": _open,
    "stale": _stale,
    "fresh": _bare,
    "missing": _bare,
}
