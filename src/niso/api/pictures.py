"""Draw which services communicate: `Host.graph`."""

from __future__ import annotations

import subprocess

from niso.base.errors import Error, UsageError
from niso.base.lite_typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niso.api.session import Session
    from niso.see.graph import Graph

FORMATS = ("mermaid", "dot", "svg", "png")
_PATIENCE_S = 120


def graph(
    session: Session, format_: str, stack: str | None, declared: bool, since: float | None
) -> bytes:
    """Return a picture: `Host.graph`. ``since`` is in seconds since 1970."""
    from niso.see import graph as drawer

    if format_ not in FORMATS:
        raise UsageError(f"{format_!r} is not a format", ", ".join(FORMATS), "--format")
    if declared and since is not None:
        raise UsageError("and --declared exclude each other", "omit one of them", "--since")
    picture = _picture(session, stack, declared, since)
    if format_ == "mermaid":
        return drawer.mermaid(picture).encode()
    text = drawer.dot(picture).encode()
    return text if format_ == "dot" else _drawn(text, format_)


def _picture(session: Session, stack: str | None, declared: bool, since: float | None) -> Graph:
    from niso.reconcile.world import read_world
    from niso.see import graph as drawer

    if declared and stack is not None:
        from niso.commands import stack as command
        from niso.see import stack_world

        return drawer.of_policies(stack_world.declared(command.load(stack)), None, False)
    store, kernel = session.store(), session.kernel()
    only = None
    if stack is not None:
        from niso.commands import stack as command

        only = frozenset(command.outlined(store, stack).after)
    world = read_world(kernel, store)
    if only is not None:
        only &= frozenset(world.services)
    if declared:
        return drawer.of_policies(world, only, True)
    import time

    from niso.see import seen

    oldest = None if since is None else time.time() - since
    flows = [
        flow
        for flow in seen.joined(world, seen.remembered(kernel, world))
        if oldest is None or flow.open or (flow.ago is not None and flow.ago <= oldest)
    ]
    return drawer.of_traffic(world, flows, only)


def _drawn(text: bytes, format_: str) -> bytes:
    """Render a picture with Graphviz (dot(1)). Raises Error."""
    hint = "apt install graphviz, or --format mermaid"
    try:
        done = subprocess.run(  # found in the administrator's PATH
            ["dot", f"-T{format_}"],
            input=text,
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
    except FileNotFoundError:
        raise Error(f"the program dot, which draws {format_}, is not installed", hint) from None
    except subprocess.TimeoutExpired:
        raise Error(f"dot did not draw it within {_PATIENCE_S} s", "--format mermaid") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
        raise Error(f"dot: {words or 'failed'}", hint)
    return done.stdout
