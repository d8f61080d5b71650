"""A conversation with a model: messages in, answers out, each a node of the session's tree (ACE, appendix F.2).

A_j = ChatBot(H_<j, Q_j): every answer is made by one model from the message and the rounds before it. `ask` opens a
message (`message.py`), makes the answer step by step (`run.py`) and keeps it; the next round goes on from the kept
latents.

Not here: several requests of several people at once (`ace/server`), drawing the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from threading import Lock

from ace.conditions.units import LongContextConditionUnit
from ace.conversation.family import Family, open_job
from ace.conversation.job import Job, Made, Progress, Settings, variants
from ace.conversation.message import Message, Picture, answer_of, open_message
from ace.conversation.recipe import CURRENT_RULES
from ace.conversation.replay import Replay, compare_with_node, job_of_node
from ace.conversation.run import notes_of, notes_on, run
from ace.conversation.seeds import read_seed
from ace.conversation.session import Node, Session
from ace.inference.preserve import DriftReport


class ChatSession:
    """A session and the loaded model that answers in it. One conversation step at a time: others wait."""

    def __init__(self, session: Session, family: Family) -> None:
        self.session = session
        self.family = family
        self._one_at_a_time = Lock()

    def open(self, message: Message, start: str | None = None) -> Job:
        """Check a message that follows node `start` (None = it begins a conversation). Raises as `open_message`."""
        return open_message(self.family, message, self.session, start)

    def answer(self, node_id: str) -> Picture:
        """The answer of a node as an image of a message. Raises SessionError."""
        return answer_of(self.session, node_id)

    def job_of(self, node_id: str) -> Job:
        """The job that made a node, opened from the session. Raises SessionError."""
        return job_of_node(self.session, node_id, self.family.sha256)

    def reopened(self, node_id: str) -> Job:
        """The job that made a node, to make it again. Raises SessionError, and InputError if this model cannot."""
        return open_job(self.family, self.job_of(node_id))

    def job_again(self, node_id: str, seed: int | str | None = None) -> Job:
        """The same request under today's rules with another seed, None = a random one. Raises as `reopened`."""
        job = self.job_of(node_id)
        return open_job(
            self.family, replace(job, settings=replace(job.settings, seed=read_seed(seed), rules=CURRENT_RULES))
        )

    def ask(
        self,
        message: Message,
        start: str | None = None,
        *,
        count: int = 1,
        previews: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Node]:
        """Answer a message: progress after every step, then the new nodes, siblings with consecutive seeds.

        cancelled: asked before every step; once it is true nothing more is made and no node is added. Raises as
        `open`."""
        yield from self.run(variants(self.open(message, start), count), previews=previews, cancelled=cancelled)

    def again(
        self,
        node_id: str,
        *,
        seed: int | None = None,
        count: int = 1,
        previews: bool = True,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[Progress | Node]:
        """The same request with another seed (None = a random one), as siblings of the node. Otherwise as `ask`."""
        yield from self.run(variants(self.job_again(node_id, seed), count), previews=previews, cancelled=cancelled)

    def run(
        self, jobs: Sequence[Job], *, previews: bool = True, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Progress | Node]:
        """Make jobs and keep the answers as nodes; otherwise as `ask`."""
        with self._one_at_a_time:
            for one in run(self.family, jobs, previews=previews, cancelled=cancelled):
                yield keep(self.session, one) if isinstance(one, Made) else one

    def replay(self, node_id: str, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Progress | Replay]:
        """Make a node again from what the session keeps, and compare. Adds nothing. Raises SessionError."""
        job = self.reopened(node_id)
        with self._one_at_a_time:
            for one in run(self.family, [job], cancelled=cancelled):
                yield one if isinstance(one, Progress) else compare_with_node(self.session, node_id, one)

    def drift(self, node_id: str) -> DriftReport | None:
        """How far a node's answer moved from what it edited, as `Made.drift`; None if it edited nothing."""
        node, source = self.session.node(node_id), self.session.source(node_id)
        recipe = node.recipe
        if source is None or recipe.settings.get("edits") is False:
            return None
        unit = self.session.unit(node_id)
        edit = LongContextConditionUnit(replace(unit, instruction="edit"))  # no need to open the rounds before it
        job = Job(edit, Settings.of_recipe(recipe), source)
        return node.medium.drift(job, node.medium.load(node.answer_path))

    def notes(self, node_id: str) -> tuple[str, ...]:
        """What the user should know of a node's request, as `Made.notes`."""
        return (*notes_on(self.family, self.job_of(node_id)), *notes_of(self.session.node(node_id).recipe))


def keep(session: Session, made: Made) -> Node:
    """Add a finished round to a session. Raises SessionError or OutputError."""
    job = made.job
    return session.add_node(
        job.unit.current,
        made.content,
        made.recipe,
        parents=job.parents,
        latents=made.latents,
        source=job.source,
        medium=made.medium,
    )
