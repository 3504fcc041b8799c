"""Find the services whose rows need a closer look, by one query of SQLite.

Decoding the manifest and the spec of a service takes 50 µs, and comparing its rows with them 25 in
queries of their own. A host may know ten thousand inactive services, whose rows hardly ever differ.
"""

from __future__ import annotations

from niso.base import convert, lite_json
from niso.base.lite_typing import TYPE_CHECKING
from niso.plan.records import Policy
from niso.plan.service_spec import ServiceSpec
from niso.store.sqlite import sqlite3

if TYPE_CHECKING:
    from typing import Any

_TYPES: dict[Any, tuple[str, ...]] = {
    type(None): ("null",),
    str: ("text",),
    int: ("integer",),
    float: ("real",),
    bool: ("true", "false"),
    list: ("array",),
    dict: ("object",),
}
"""The types of JSON, as json_each names them (https://sqlite.org/json1.html)."""

_DOUBTFUL = """
SELECT name FROM service s WHERE CASE
  WHEN active=0 AND json_valid(manifest) AND json_valid(spec) AND json_valid(networks) THEN
    json_type(spec, '$.service')='text'
    AND (SELECT count(*)=:keys AND min(key||':'||type IN (SELECT value FROM json_each(:typed)))
         FROM json_each(s.manifest))
    AND json_extract(manifest, '$.policy')=:open
    AND json_array_length(manifest, '$.aliases')=0
    AND json_extract(manifest, '$.addresses')='{}'
    AND json_extract(manifest, '$.addresses6')='{}'
    AND json_extract(manifest, '$.extra_hosts')='{}'
    AND EXISTS (SELECT 1 FROM host_name h WHERE h.service=s.name AND position=0
                AND h.name=json_extract(manifest, '$.hostname'))
    AND (json_extract(manifest, '$.hostname')=s.name OR EXISTS
         (SELECT 1 FROM host_name h WHERE h.service=s.name AND position=1 AND h.name=s.name))
    AND NOT EXISTS (
      SELECT 1 FROM json_each(s.networks) w
      LEFT JOIN endpoint e ON e.service=s.name AND e.position=w.key AND e.network=w.value
      LEFT JOIN subnet n ON n.network=e.network
      LEFT JOIN lease l ON l.service=s.name AND l.network=n.network AND l.family=n.family
      LEFT JOIN span ON span.network=e.network
      WHERE l.service IS NULL OR span.network IS NOT NULL)
  END IS NOT 1 ORDER BY name
"""


def doubtful(db: sqlite3.Connection) -> list[str]:
    """Return the names of the services that need a closer look, sorted.

    All active ones do. An inactive one does not if its manifest has all keys with values of their
    types, its spec names a service, it has no policy, alias, static address or extra host,
    and its names, networks and leases are there. What is inside the value of a key is not compared.
    """
    typed = [
        f"{key}:{name}"
        for key, kind in convert.fields(ServiceSpec).items()
        for form in kind
        for name in _TYPES[form]
    ]
    values = {
        "typed": lite_json.dumps(typed),
        "keys": len(ServiceSpec._fields),
        "open": lite_json.dumps(convert.plain(Policy()), compact=True),
    }
    return [row[0] for row in db.execute(_DOUBTFUL, values)]
