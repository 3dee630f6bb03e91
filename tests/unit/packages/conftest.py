from __future__ import annotations

from hypothesis import settings

# A busy machine is no mistake of the code, and the tests leave no files behind.
settings.register_profile("sis", deadline=None, database=None)
settings.load_profile("sis")
