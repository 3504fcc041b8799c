"""Name the changes whose command has died. Their intents wait for the next command (`journal`)."""

from __future__ import annotations

from niso.base.locks import is_held
from niso.store.store import Intent, Store

_COMMANDS = {"stop": "deactivate", "remove volumes": "remove", "ports": "port-forward"}


def command_of(intent: Intent) -> str:
    """Return the command that began a change."""
    return _COMMANDS.get(intent.action, intent.action)


def interrupted(store: Store) -> dict[str, str]:
    """Return {service: command} of each change that nobody carries out any more.

    A command holds the service's lock from before its intent until after it.
    """
    pending = {}
    for intent in store.intents():
        if not is_held(intent.service) and store.intent(intent.service) == intent:
            pending[intent.service] = command_of(intent)
    return pending
