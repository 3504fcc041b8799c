"""Ask the host's name servers for the addresses of outside names, with dnspython.

niso resolves as the host: the name servers of its resolv.conf are asked, also those on its
loopback, which services cannot reach. Its hosts file is not read, since its lines have no TTL, and
search domains are not used.
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
"""The longest time (s) for one server, one question and all questions."""
_AT_ONCE = 16
_TYPES = {4: "A", 6: "AAAA"}


def require() -> Any:
    """Return the module dns. Raises Error without dnspython."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError:
        hint = "apt install python3-dnspython, or install niso[names] with pip"
        raise Error("dnspython, which resolves outside names, is not installed", hint) from None
    return dns


def ask(names: Iterable[str]) -> dict[str, tuple[Heard, ...]]:
    """Return the answers for the names, one of each family. Raises Error without dnspython.

    Takes at most `_ALL_S`, and a little more for questions that have begun.
    """
    import random  # dnspython loads it too

    dns = require()
    order = list(names)
    random.shuffle(order)  # names that hang must not take the time of the same others each time
    questions = [(name, family) for name in order for family in _TYPES]
    try:
        resolver = dns.resolver.Resolver(filename=RESOLV_CONF)
    except (dns.exception.DNSException, ValueError):  # the latter of a name server's address
        reason = f"{RESOLV_CONF} has no usable name server"
        heard = [Heard(family, problem=reason, silent=True) for _, family in questions]
    else:
        from concurrent.futures import ThreadPoolExecutor

        resolver.timeout = _SERVER_S
        end = time.monotonic() + _ALL_S
        # a slow name must not take the time of the others
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
    """Return the answer for one family of a name, following CNAMEs."""
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
    # of the whole chain of CNAMEs
    ttl_s = float(answer.chaining_result.minimum_ttl)
    return Heard(family, tuple(record.address for record in answer.rrset), ttl_s)
