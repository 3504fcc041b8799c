"""List changes whose command has died; the next command finishes or undoes them (`journal`)."""

from __future__ import annotations

from niso.base.locks import is_held
from niso.store.store import Intent, Store

_COMMANDS = {"stop": "deactivate", "remove volumes": "remove", "ports": "port-forward"}


def command_of(intent: Intent) -> str:
    """Return the name of the command that began a change."""
    return _COMMANDS.get(intent.action, intent.action)


def interrupted(store: Store) -> dict[str, str]:
    """Return {service: command} for each change whose command has died.

    A command holds the service's lock from before its intent until after it.
    """
    pending = {}
    for intent in store.intents():
        if not is_held(intent.service) and store.intent(intent.service) == intent:
            pending[intent.service] = command_of(intent)
    return pending
