"""MESSAGE → NODE. Imports: conditions, inference, video, files, errors.

In: messages of words, images and masks, and the answers that they follow. Out: images with their recipes, kept as nodes
of a session's tree, and made again from it. What a model does in between is behind `Family`.
"""

from ace.conversation.chat import ChatSession, keep
from ace.conversation.family import Family, Loading, open_job
from ace.conversation.job import Job, Made, Progress, Settings
from ace.conversation.message import Mask, Message, Picture, open_message
from ace.conversation.recipe import Recipe
from ace.conversation.run import make, run
from ace.conversation.session import Node, Session

__all__ = [
    "ChatSession",
    "Family",
    "Job",
    "Loading",
    "Made",
    "Mask",
    "Message",
    "Node",
    "Picture",
    "Progress",
    "Recipe",
    "Session",
    "Settings",
    "keep",
    "make",
    "open_job",
    "open_message",
    "run",
]
