"""NAME → FAMILY. Imports: conditions, extract, diffusion, inference, plus, weights, video, conversation, files, errors.

The leaves of `ace.conversation.family.Family`: ACE, ACE++, any editing pipeline of diffusers. In: a model's name or a
recipe. Out: the family that checks requests, loads and makes images.
"""

from ace.families.find import family_of_recipe, find_family

__all__ = ["family_of_recipe", "find_family"]
