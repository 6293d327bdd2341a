"""Chat templates, by transformers."""

from pathlib import Path

from tileir.errors import TileirError


def render_chat(folder: Path, prompt: str) -> str:
    """The prompt as a user's message in the folder's chat template, ready for the answer.

    Raises TileirError if the tokenizer has no template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.chat_template:
        raise TileirError(f"{folder} has no chat template", hint="run without --chat")
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
