"""How much hypothesis tries: `pytest --hypothesis-profile=full` for ten times as many examples as usual."""

from hypothesis import settings

settings.register_profile("full", max_examples=10 * settings().max_examples)
