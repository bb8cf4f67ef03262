"""Chats as text, by the tokenizer's own template, the same for the same messages on every day."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from indexer.errors import IndexerError

# the day that templates which write the present one get: that which Llama 3.1's own falls back on
DAY = datetime(2024, 7, 26)
_PRESENT = "strftime_now"
_DIRECTIVES = "aAbBdHIjmMpSyYxXcUwWfzZ"


def chat_writer(tokenizer: Any) -> Callable[[list[dict[str, Any]]], str]:
    """What writes messages (role, content and what else the template knows) as text.

    It raises IndexerError, worded to follow "and", where there is no template or the template refuses them.
    """

    def written(messages: list[dict[str, Any]]) -> str:
        if not getattr(tokenizer, "chat_template", None):
            raise IndexerError(
                "the model's tokenizer has no chat template; write the chats as text, or take another model"
            )
        try:
            return str(
                tokenizer.apply_chat_template(messages, chat_template=_on_that_day(tokenizer), tokenize=False)
            )
        except Exception as error:
            # a template raises what it likes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise IndexerError(f"the tokenizer's chat template refuses it ({reason[:300]})") from error

    return written


def _on_that_day(tokenizer: Any) -> str:
    """The template, with the function that tells the present day, where it is called, in words of its own."""
    template = str(tokenizer.get_chat_template())
    if _PRESENT not in template:
        return template
    filters = "".join(f" | replace('%{name}', '{DAY.strftime('%' + name)}')" for name in _DIRECTIVES)
    return f"{{%- macro {_PRESENT}(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}{template}"
