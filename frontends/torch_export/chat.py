"""Chat templates, by transformers."""

from collections.abc import Callable
from pathlib import Path

from tileir.errors import TileirError


def load_chat(folder: Path) -> Callable[[list[dict[str, str]]], str]:
    """A function from a conversation's turns to the text that the model reads before it answers.

    A turn is {"role": "user" or "assistant", "content": text}. Raises TileirError if the tokenizer has no template, and
    the function does for turns that the template refuses.
    """
    from jinja2 import TemplateError
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise TileirError(
            f"{folder} holds no tokenizer that transformers reads: {str(error).splitlines()[0]}",
            hint="save the tokenizer beside the weights, or run without --chat",
        ) from None
    if not tokenizer.chat_template:
        raise TileirError(f"{folder} has no chat template", hint="run without --chat")

    def render(turns: list[dict[str, str]]) -> str:
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise TileirError(
                f"the chat template of {folder} refuses the conversation: {error}",
                hint="run without --chat, with a prompt in the model's own format",
            ) from None
        return str(text)

    return render
