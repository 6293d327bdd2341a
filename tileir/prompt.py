"""What every session asks of a prompt."""

import reprlib
from collections.abc import Sequence
from operator import index

from tileir.errors import TileirError


def check_prompt(ids: Sequence[int], new: int, vocabulary: int, context: int) -> list[int]:
    """The ids as a list. Raises TileirError if a session cannot take them."""
    try:
        ids = [index(i) for i in ids]
    except TypeError:
        raise TileirError(
            f"the prompt is {reprlib.repr(ids)}",
            hint="token ids are whole numbers; encode text first: tokenizer.encode(text).ids",
        ) from None
    if not ids:
        raise TileirError("the prompt is empty", hint="give at least one token id")
    bad = next((i for i in ids if not 0 <= i < vocabulary), None)
    if bad is not None:
        raise TileirError(
            f"token id {bad} is outside 0 … {vocabulary - 1}",
            hint="use the tokenizer of the model that was compiled",
        )
    if new < 0:
        raise TileirError(f"max_new_tokens is {new}", hint="0 or more")
    if len(ids) + max(new - 1, 0) > context:
        raise TileirError(
            f"a prompt of {len(ids)} tokens and {new} new ones do not fit the context of {context}",
            hint="shorten them, or export with a larger max_context",
        )
    return ids
