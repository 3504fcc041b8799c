"""Find the services whose rows must be checked in detail, with a single SQL query.

Decoding the manifest and spec of a service takes 50 µs, and comparing its rows with them another 25
µs in queries of their own. A host may have ten thousand inactive services, whose rows are hardly
ever wrong.
"""

from __future__ import annotations

from niso.store import specs
from niso.store.sqlite import sqlite3

_DOUBTFUL = """
SELECT name FROM service s WHERE CASE
  WHEN active=0 AND plain!=0 AND plain=checksum(CAST(name AS BLOB), CAST(manifest AS BLOB),
                                                CAST(spec AS BLOB), CAST(networks AS BLOB)) THEN
    EXISTS (SELECT 1 FROM host_name h WHERE h.service=s.name AND position=0
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
    """Return the names of the services that must be checked in detail, sorted.

    These are all active services. An inactive one is left out if its record is unchanged, according
    to its checksum (`niso.store.specs.mark`), and its names, networks and leases exist.
    """
    db.create_function("checksum", 4, specs.checksum, deterministic=True)
    return [row[0] for row in db.execute(_DOUBTFUL)]
