"""Define what the cluster's engine is asked and answers, as plain data, and its errors.

The engine holds keys with values. Every change gives it a new revision, a number that only grows.
A key's *modified* revision is that of its last change, 0 if the key does not exist. A `Txn` is
carried out as a whole or not at all.
"""

from __future__ import annotations

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    from niso.cluster.keys import Keys


class NoAnswer(Error):
    """No member of the engine has answered in time.

    ``unknown``: a request was sent that may have been carried out.
    """

    def __init__(self, reason: str, hint: str | None = None, unknown: bool = False) -> None:
        super().__init__(reason, hint)
        self.unknown = unknown


class Refused(NoAnswer):
    """The engine has refused a request: it was not carried out.

    It is full, or the user may not do it. What needs no answer goes on as without one.
    ``code`` is that of the refusal (google.rpc.Code); 0 for an unknown one.
    """

    def __init__(self, reason: str, hint: str | None = None, code: int = 0) -> None:
        super().__init__(reason, hint)
        self.code = code


class Compacted(Exception):
    """The events of a revision are gone: everything has to be read again."""

    def __init__(self, revision: int) -> None:
        super().__init__(revision)
        self.revision = revision


class Item(NamedTuple):
    """A key with its value, a text. ``lease`` is 0 for none."""

    key: str
    value: str
    modified: int
    lease: int = 0


class Compare(NamedTuple):
    """A condition: the key has this modified revision; 0 for a key that does not exist."""

    key: str
    modified: int = 0
    prefix: bool = False  # no key exists with this prefix; ``modified`` is 0


class Put(NamedTuple):
    key: str
    value: str
    lease: int = 0


class Delete(NamedTuple):
    key: str
    prefix: bool = False


class Txn(NamedTuple):
    """Changes that are made if all conditions hold. A key is in ``changes`` once at most."""

    conditions: tuple[Compare, ...]
    changes: tuple[Put | Delete, ...]


class Done(NamedTuple):
    """The answer to a `Txn`: whether the conditions held, and the engine's revision."""

    done: bool
    revision: int


class Answer(NamedTuple):
    """Keys as they were at a revision, sorted."""

    revision: int
    items: tuple[Item, ...]


class Mark(NamedTuple):
    """The newest of some keys, and their number: if both are as before, no key has changed.

    A key that comes or changes is newer than all others, and one that goes is missing. Data from a
    backup can have the same revisions again, and then leases tell them apart.
    """

    revision: int  # of the engine
    newest: int  # 0 without keys
    lease: int  # of the newest one; of several, any of them
    number: int


class Event(NamedTuple):
    """A change of a key at a revision; ``item`` is None if it was deleted."""

    key: str
    item: Item | None
    modified: int


class Batch(NamedTuple):
    """Events up to a revision; without any, the revision is a sign of life."""

    revision: int
    events: tuple[Event, ...]


if TYPE_CHECKING:

    class Engine(Protocol):
        """An engine. Every method raises NoAnswer and Refused.

        `niso.cluster.etcd` is the one in use, `niso.cluster.fake_engine` one in memory. The same
        tests run on both.
        """

        def close(self) -> None:
            """Close its connection; the next request opens another."""

        def get(self, prefix: str, *, one: bool = False, stale: bool = False) -> Answer:
            """Return all keys with a prefix, or with ``one`` the key itself.

            With ``stale`` a member may answer that has lost the others.
            """

        def keys(self, prefix: str) -> list[str]:
            """Return the keys with a prefix, without values."""

        def mark(self, prefix: str) -> Mark:
            """Return what says whether the keys with a prefix have changed."""

        def commit(self, txn: Txn) -> Done:
            """Carry out a transaction.

            After NoAnswer with ``unknown`` it may or may not have been carried out, or be yet.
            """

        def grant(self, ttl_s: int) -> int:
            """Return a new lease, which ends if it is not kept for that many seconds."""

        def keep(self, lease: int) -> bool:
            """Prolong a lease; return whether it still exists."""

        def revoke(self, lease: int) -> None:
            """End a lease: its keys are deleted. No-op if it has ended."""

        def watch(self, prefix: str, revision: int, silence_s: float) -> Iterator[Batch]:
            """Yield the changes of keys with a prefix, from a revision on.

            It ends with NoAnswer if nothing comes for that long, not even a sign of life, or if
            the member has lost the others, and with Compacted.
            """

    class Joined(Protocol):
        """How a host reaches its cluster; `niso.cluster.config.Config` is one."""

        @property
        def host(self) -> str:
            """Return the name of this host."""

        @property
        def address(self) -> str:
            """Return its address between the hosts."""

        @property
        def encryption(self) -> str:
            """Return how it encrypts what it sends to other hosts; "" for not at all."""

        @property
        def keys(self) -> Keys:
            """Return the names of the cluster's keys."""

        def engine(self, brief: bool = False) -> Engine:
            """Return a new connection, for one thread; a ``brief`` one soon ceases to wait.

            Raises Error.
            """
