"""What holds for all tests."""

from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("shoal", deadline=None, max_examples=50)
settings.register_profile("soak", deadline=None, max_examples=1000)
settings.load_profile("shoal")
