"""Resolve outside names with the host's name servers, by dnspython.

Names are resolved as on the host, with the name servers of its resolv.conf, including those on its
loopback, which services cannot reach. Its hosts file is not read, because its lines have no TTL,
and search domains are not used.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from niso.base.errors import Error
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.answers import Heard

if TYPE_CHECKING:
    from typing import Any

RESOLV_CONF = "/etc/resolv.conf"
_SERVER_S, _QUESTION_S, _ALL_S = 1.5, 4.0, 15.0
"""Timeouts (s) of one server, one question and all questions."""
_AT_ONCE = 16
_TYPES = {4: "A", 6: "AAAA"}


def require() -> Any:
    """Import and return the module dns. Raises Error if dnspython is not installed."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        hint = "apt install python3-dnspython, or install niso[names] with pip"
        raise Error("dnspython, which resolves outside names, is not installed", hint) from None
    return dns


def ask(names: Iterable[str]) -> dict[str, tuple[Heard, ...]]:
    """Resolve names; return one answer of each family. Raises Error if dnspython is not installed.

    Takes at most `_ALL_S`, and a little more for questions already sent.
    """
    import random  # dnspython loads it anyway

    dns = require()
    order = list(names)
    random.shuffle(order)  # slow names must not use up the time of the same other names each time
    questions = [(name, family) for name in order for family in _TYPES]
    try:
        resolver = dns.resolver.Resolver(filename=RESOLV_CONF)
    # ValueError: a name server's address is invalid
    except (dns.exception.DNSException, ValueError):
        reason = f"{RESOLV_CONF} has no usable name server"
        heard = [Heard(family, problem=reason, silent=True) for _, family in questions]
    else:
        from concurrent.futures import ThreadPoolExecutor

        resolver.timeout = _SERVER_S
        end = time.monotonic() + _ALL_S
        # a slow name must not use up the time of the others
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            heard = list(
                pool.map(
                    lambda question: _one(dns, resolver, question[0], question[1], end), questions
                )
            )
    answers: dict[str, tuple[Heard, ...]] = {}
    for (name, _), one in zip(questions, heard, strict=True):
        answers[name] = (*answers.get(name, ()), one)
    return answers


def _one(dns: Any, resolver: Any, name: str, family: int, end: float) -> Heard:
    """Resolve one family of a name, following CNAMEs."""
    left = end - time.monotonic()
    if left <= 0:
        return Heard(family, problem="there was no time to ask", silent=True)
    try:
        answer = resolver.resolve(
            f"{name}.",
            _TYPES[family],
            raise_on_no_answer=False,
            search=False,
            lifetime=min(_QUESTION_S, left),
        )
    except dns.resolver.NXDOMAIN:
        return Heard(family, problem="DNS has no such name")
    except dns.exception.Timeout:
        return Heard(family, problem="no name server answered", silent=True)
    except dns.resolver.NoNameservers:
        return Heard(family, problem="no name server could answer", silent=True)
    except (dns.exception.DNSException, OSError, ValueError) as error:
        reason = f"the answer is unusable ({type(error).__name__})"
        return Heard(family, problem=reason, silent=True)
    if answer.rrset is None:
        return Heard(family, problem=f"DNS has no IPv{family} address for it")
    # the minimum over the chain of CNAMEs
    ttl_s = float(answer.chaining_result.minimum_ttl)
    return Heard(family, tuple(record.address for record in answer.rrset), ttl_s)
