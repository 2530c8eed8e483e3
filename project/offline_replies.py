"""What the offline client says: a few rules that read a conversation as a model would be given it.

Sending it, streamed or not, is left to ``offline``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_framework import Content, Message

Call = tuple[str, dict[str, Any]]

_NAME = re.compile(r"(?i:\bmy name is)\s+([^\W\d_][\w'’-]*(?:\s[A-Z][\w'’-]*)*)")
_ASKS_NAME = re.compile(r"(?i)\b(?:what(?:['’]s| is)|tell me|do you (?:know|remember)) my name\b|\bwho am i\b")
_ASKS_HISTORY = re.compile(r"(?i)\bwhat (?:did i|have i) (?:say|said|tell|told)\b")
_ASKS_TIME = re.compile(
    r"(?i)\b(?:what(?:['’]s| is)? the (?:current )?(?:time|date)|what (?:time|day) is it|current time)\b"
)
_ZONE = re.compile(r"\bin ([A-Z]\w+(?:/[A-Z]\w+)+)")
_ASKS_WORDS = re.compile(r"(?is)\b(?:how many words are (?:there )?in|count the words (?:in|of))[:\s]*(.+)")
_EXPRESSION = r"[-+]?[\d.(][\d\s.()+*/%-]*[\d)]"
_ASKS_SUM = re.compile(
    rf"(?i)(?:\b(?:calculate|compute|what(?:['’]s| is)|how much is)\s+|^\s*)({_EXPRESSION})\s*[=?.!]*\s*$"
)
_ASKS_ROOM = re.compile(r"(?i)\bbook (?:the )?room (\w[\w-]*) (?:for|on) (\w(?:[^.!?]*\w)?)")

_ASKS_COUNT = re.compile(r"(?i)\bcount (?:slowly )?to (\d{1,3})\b")
_ASKS_MARKDOWN = re.compile(r"(?i)\bshow (?:me )?(?:some )?markdown\b")
_ASKS_ECHO = re.compile(r"(?is)^\s*say:\s*(.+)")

# What core gives a model as the result of a call that a person refused; nothing else tells it apart.
_REFUSED = "rejected by user"

HINT = (
    "I am a stand-in for a model and work without a network: "
    "tell me your name, or ask me for the time, for a sum such as 6 * 7, to count the words in a text, "
    "or to book room Blue for Friday. “Show me some Markdown.”, “Count to 60.” and “Say: …” do as they say."
)

MARKDOWN = """\
## A small tour

A stand-in can write **bold**, *italic*, ~~struck~~ and `code`, and set a [link](https://example.com/).

1. First things first,
2. then the others:
   - calm pages
   - short answers

| dialect | address | stream |
|---|---|---|
| channel | `/invocations/invoke` | `[DONE]` at the end |
| platform | `/invocations` | `event: done` |

> What is said can be quoted, too.

```python
def answer(question: str) -> int:
    return 6 * 7  # after some thought
```
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What comes next: a text, or calls of tools when there are any."""

    text: str = ""
    calls: tuple[Call, ...] = ()


def reply_to(messages: Sequence[Message], tools: Collection[str]) -> Reply:
    """Decide how the conversation goes on.

    Args:
        messages: The conversation, oldest first, with what its history holds.
        tools: Names of the tools that may be called now.

    Returns:
        Calls of tools where the last user message asks for them and they were
        not made yet; a text otherwise.
    """
    asked = [message for message in messages if message.role == "user"]
    if not asked:
        return Reply(HINT)
    last = asked[-1]
    after = messages[max(index for index, message in enumerate(messages) if message is last) + 1 :]
    results = _results(after)
    if results:
        return Reply(" ".join(results))
    text = _text(last)
    calls = tuple(call for call in _calls(text) if call[0] in tools)
    return Reply(calls=calls) if calls else Reply(_say(text, asked))


def _text(message: Message) -> str:
    return "".join(content.text or "" for content in message.contents if content.type == "text")


def _calls(text: str) -> list[Call]:
    calls: list[Call] = []
    if _ASKS_TIME.search(text):
        zone = _ZONE.search(text)
        calls.append(("current_time", {"zone": zone[1]} if zone else {}))
    if counted := _ASKS_WORDS.search(text):
        calls.append(("word_count", {"text": counted[1].strip().rstrip("?").strip("\"'“”")}))
    elif (sum_ := _ASKS_SUM.search(text)) and re.search(r"[+*/%-]", sum_[1]):
        calls.append(("calculate", {"expression": sum_[1].strip()}))
    if room := _ASKS_ROOM.search(text):
        calls.append(("book_room", {"room": room[1], "day": room[2]}))
    return calls


def _results(messages: Sequence[Message]) -> list[str]:
    contents = [content for message in messages for content in message.contents]
    calls = {content.call_id: content for content in contents if content.type == "function_call"}
    return [
        _tell(calls[content.call_id], content)
        for content in contents
        if content.type == "function_result" and content.call_id in calls
    ]


def _tell(call: Content, result: Content) -> str:
    arguments: Mapping[str, Any] = call.parse_arguments() or {}
    if result.exception:
        return f"I tried {call.name} and failed."
    match call.name:
        case "current_time":
            return f"It is {result.result}."
        case "word_count":
            return f"That makes {result.result} word{'' if str(result.result) == '1' else 's'}."
        case "calculate":
            return f"{arguments.get('expression')} = {result.result}"
        case "book_room" if _REFUSED in str(result.result):
            return f"Room {arguments.get('room')} is not booked for {arguments.get('day')}: you refused it."
        case "book_room":
            return str(result.result)
        case name:
            return f"{name} says: {result.result}"


def _say(text: str, asked: Sequence[Message]) -> str:
    earlier = [_text(message) for message in asked[:-1]]
    if _ASKS_NAME.search(text):
        told = [found[1] for said in earlier if (found := _NAME.search(said))]
        return f"Your name is {told[-1]}." if told else "You have not told me your name."
    if echo := _ASKS_ECHO.search(text):
        return echo[1]
    if _ASKS_MARKDOWN.search(text):
        return MARKDOWN
    if count := _ASKS_COUNT.search(text):
        return "  \n".join(f"{number} …" for number in range(1, int(count[1]) + 1))
    if name := _NAME.search(text):
        return f"Nice to meet you, {name[1]}."
    if _ASKS_HISTORY.search(text):
        return "You said: " + "; ".join(f"“{said}”" for said in earlier) + "." if earlier else "Nothing before this."
    attached = sum(content.type == "data" for content in asked[-1].contents)
    seen = f" I see {attached} attachment{'' if attached == 1 else 's'}." if attached else ""
    return f"You said: “{text}”.{seen} " + (f"That is message {len(asked)} of our talk." if earlier else HINT)
