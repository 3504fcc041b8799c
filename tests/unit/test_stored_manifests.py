"""Test manifests as the store keeps them: their text, damaged ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from samples import samples
from stored import TemporaryStore, add_network, put, service_spec

from niso.base import convert
from niso.manifest import keys
from niso.manifest.keys import Manifest
from niso.plan.records import NetworkRecord, Policy, SubnetRecord
from niso.plan.specs import ServiceSpec
from niso.store import service_rows
from niso.store.snapshots import ALL

BOUNDED = settings(
    max_examples=samples(60, 300), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


HEAD: dict[str, Any] = {
    "package": {"name": "api", "version": "1.0.0"},
    "binary": {"entrypoint": "bin/api"},
}
SMALLEST = (
    '{"package":{"name":"api","version":"1.0.0","rootfs":null,"oci":null},"binary":{"entrypoint":"bin/api","args":[],"working_dir":"/app"},'
    '"environment":{},"service":{"user":null,"restart":"on-failure","restart_delay":"1s","stop_timeout":"10s","stop_signal":"TERM","kind":"service","timeout":null,"schedule":null,"replicas":null,"update":null,"env_file":[]},'
    '"deploy":{"surge":"all","monitor":"10s","drain":"10s","drain_signal":null,"on_failure":"rollback"},'
    '"isolation":{"capabilities":[],"read_only":true,"restrict_suid_sgid":true,"devices":[],'
    '"resources":{"memory_max":null,"cpu_max":null,"pids_limit":2048,"shm_size":"64M","tmp_size":"256M",'
    '"new_flows_limit":1000,"arp_limit":100,"multicast_limit":100,"fragments_limit":0,"new_neighbours_limit":20}},"limits":{},"sysctls":{},'
    '"healthcheck":null,"volumes":{},"secrets":{},"network":{"mode":"bridge","share":null,"network":"niso-default","networks":[],"ports":[],'
    '"hostname":null,"aliases":[],"ip":null,"extra_hosts":{},"dns":null,"dns_search":null,"bandwidth":{},"policy":{"allow_from":null,"deny_from":[],"log":false,"egress":{"allow":null,"deny":[]},"mode":"enforce","audit_until":null}}}'
)
FULL: dict[str, Any] = {
    "package": {"name": "api", "version": "1.0.0", "rootfs": "rootfs"},
    "binary": {"entrypoint": "bin/api", "args": ["--port", "8080", ""], "working_dir": "/srv"},
    "environment": {"B": "2", "A": "1"},
    "service": {
        "user": "1000:1000",
        "restart": "always",
        "restart_delay": "200ms",
        "stop_timeout": "2m",
    },
    "isolation": {
        "capabilities": ["NET_RAW"],
        "read_only": False,
        "resources": {"memory_max": "512M", "cpu_max": "200%", "pids_limit": 100},
    },
    "healthcheck": {"tcp": 8080},
    "volumes": {
        "tmp": {"mount": "/scratch", "tmpfs": True, "size": "64M"},
        "conf": {"mount": "/etc/api", "host": "/etc/api", "mode": "ro"},
    },
    "network": {
        "networks": ["a", "b"],
        "ports": ["80:80"],
        "aliases": ["web"],
        "ip": {"a": "10.99.1.10"},
        "policy": {
            "allow_from": [],
            "log": True,
            "egress": {"allow": ["db:5432"], "deny": ["10.0.0.0/8"]},
        },
    },
}
FULLEST = (
    '{"package":{"name":"api","version":"1.0.0","rootfs":"rootfs","oci":null},'
    '"binary":{"entrypoint":"bin/api","args":["--port","8080",""],"working_dir":"/srv"},"environment":{"B":"2","A":"1"},'
    '"service":{"user":"1000:1000","restart":"always","restart_delay":"200ms","stop_timeout":"2m","stop_signal":"TERM","kind":"service","timeout":null,"schedule":null,"replicas":null,"update":null,"env_file":[]},'
    '"deploy":{"surge":"all","monitor":"10s","drain":"10s","drain_signal":null,"on_failure":"rollback"},'
    '"isolation":{"capabilities":["NET_RAW"],"read_only":false,"restrict_suid_sgid":true,"devices":[],'
    '"resources":{"memory_max":"512M","cpu_max":"200%","pids_limit":100,"shm_size":"64M","tmp_size":"128M",'
    '"new_flows_limit":1000,"arp_limit":100,"multicast_limit":100,"fragments_limit":40,"new_neighbours_limit":20}},"limits":{},"sysctls":{},'
    '"healthcheck":{"tcp":8080,"http":null,"command":null,"interval":"5s","timeout":"2s","retries":3,"start_period":"10s","on_unhealthy":"none"},'
    '"volumes":{"tmp":{"mount":"/scratch","host":null,"mode":"rw","tmpfs":true,"size":"64M","shared":false},'
    '"conf":{"mount":"/etc/api","host":"/etc/api","mode":"ro","tmpfs":false,"size":null,"shared":false}},"secrets":{},'
    '"network":{"mode":"bridge","share":null,"network":"niso-default","networks":["a","b"],"ports":["80:80"],"hostname":null,'
    '"aliases":["web"],"ip":{"a":"10.99.1.10"},"extra_hosts":{},"dns":null,"dns_search":null,"bandwidth":{},'
    '"policy":{"allow_from":[],"deny_from":[],"log":true,"egress":{"allow":["db:5432"],"deny":["10.0.0.0/8"]},"mode":"enforce","audit_until":null}}}'
)


STORED = (
    '{"name":"api","network":{"mode":"bridge","share":null,"networks":["niso-default"],"addresses":{},"addresses6":{},'
    '"hostname":"api","aliases":[],"ports":[],'
    '"policy":{"allow_from":null,"deny_from":[],"egress_allow":null,"egress_deny":[],"log":false,"audit":null},'
    '"limits":{"new_flows":1000,"fragments":0,"arp":100,"neighbours":20,"multicast":100},"extra_hosts":{},"dns":null,"dns_search":null,'
    '"bandwidth":{},"sysctls":{}},'
    '"process":{"rootfs":null,"entrypoint":"bin/api","args":[],"working_dir":"/app","environment":{},"user":null,"kind":"service",'
    '"restart":"on-failure","restart_delay_s":1.0,"stop_timeout_s":10.0,"timeout_s":null,"capabilities":[],"read_only":true,'
    '"restrict_suid_sgid":true,"memory_max":null,"cpu_max":null,"pids_limit":2048,"shm_size":67108864,"tmp_size":268435456,'
    '"healthcheck":null,"volumes":[],"secrets":{},"folder":null,"apart":[],"deploy":null,"stop_signal":"TERM","rlimits":{},"devices":[],"schedule":null},"manifest":'
    + SMALLEST
    + ',"front":""}'
)
STORED_FULL = (
    '{"name":"api","network":{"mode":"bridge","share":null,"networks":["a","b"],"addresses":{"a":"10.99.1.10"},"addresses6":{},'
    '"hostname":"api","aliases":["web"],'
    '"ports":[{"port":{"host_ip":"","host_port":80,"container_port":80,"proto":"tcp","count":1},"key":"network.ports[0]"}],'
    '"policy":{"allow_from":[],"deny_from":[],"egress_allow":[{"key":"network.policy.egress.allow[0]","text":"db:5432","peer":{"kind":"service","name":"db"},"first":5432,"last":5432,"proto":""}],"egress_deny":[{"key":"network.policy.egress.deny[0]","text":"10.0.0.0/8","peer":{"kind":"prefix","name":"10.0.0.0/8"},"first":0,"last":65535,"proto":""}],"log":true,"audit":null},'
    '"limits":{"new_flows":1000,"fragments":40,"arp":100,"neighbours":20,"multicast":100},"extra_hosts":{},"dns":null,"dns_search":null,'
    '"bandwidth":{},"sysctls":{}},'
    '"process":{"rootfs":"rootfs","entrypoint":"bin/api","args":["--port","8080",""],"working_dir":"/srv",'
    '"environment":{"B":"2","A":"1"},"user":{"name":null,"uid":1000,"gid":1000},"kind":"service","restart":"always",'
    '"restart_delay_s":0.2,"stop_timeout_s":120.0,"timeout_s":null,"capabilities":["NET_RAW"],"read_only":false,'
    '"restrict_suid_sgid":true,"memory_max":536870912,"cpu_max":200,"pids_limit":100,"shm_size":67108864,"tmp_size":134217728,'
    '"healthcheck":{"address":"","port":8080,"host":"","path":null,"interval_s":5.0,"timeout_s":2.0,"retries":3,"start_period_s":10.0,"command":[],"on_unhealthy":"none","outer":false},'
    '"volumes":[{"name":"tmp","mount":"/scratch","host":null,"tmpfs":true,"read_only":false,"size":67108864,"shared":false},{"name":"conf","mount":"/etc/api","host":"/etc/api","tmpfs":false,"read_only":true,"size":null,"shared":false}],'
    '"secrets":{},"folder":null,"apart":[],"deploy":null,"stop_signal":"TERM","rlimits":{},"devices":[],"schedule":null},"manifest":'
    + FULLEST
    + ',"front":""}'
)


def spec_of(data: dict[str, Any]) -> ServiceSpec:
    return keys.spec(convert.convert(data, Manifest), {})


@pytest.mark.parametrize(
    ("data", "text"), [(HEAD, STORED), (FULL, STORED_FULL)], ids=["smallest", "full"]
)
def test_stored_text_is_that_of_the_version(data: dict[str, Any], text: str) -> None:
    """A service whose stored text changed would be seen as changed."""
    spec = spec_of(data)
    assert service_rows.encode_service(spec) == text
    found = service_rows.service(json.dumps(json.loads(text), indent=1))
    assert found == spec
    assert (
        found is not None
        and type(found.network.policy) is Policy
        and type(found.program.volumes) is tuple
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('"quoted"', '"\\"quoted\\""'),
        ("a\\b/c", '"a\\\\b/c"'),
        ("\b\t\n\f\r", '"\\b\\t\\n\\f\\r"'),
        ("\0\x01\x0b\x1b\x1f", '"\\u0000\\u0001\\u000b\\u001b\\u001f"'),
        ("\x7f\x80\x9f\xa0\xad", '"\x7f\x80\x9f\xa0\xad"'),
        ("äßé", '"äßé"'),
        ("\u2028\u2029\ufeff\ufffe\uffff", '"\u2028\u2029\ufeff\ufffe\uffff"'),
        ("\U0001f600\U00010000\U0010ffff", '"\U0001f600\U00010000\U0010ffff"'),
        ("<a href='x'>&</a>", "\"<a href='x'>&</a>\""),
        ("\ud7ff\ue000", '"\ud7ff\ue000"'),
    ],
    ids=ascii,
)
def test_stored_text_escapes_what_it_always_did(value: str, text: str) -> None:
    spec = spec_of(HEAD)
    program = spec.program._replace(environment={"A": value, value: "A"})
    spec = spec._replace(process=program)
    stored = STORED.replace('"environment":{}', f'"environment":{{"A":{text},{text}:"A"}}', 1)
    assert service_rows.encode_service(spec) == stored
    assert service_rows.service(f"{stored} ") == spec


@pytest.mark.parametrize(
    ("instead", "text"),
    [
        ('"environment":{"A":"\\ud83d\\ude00"}', "\U0001f600"),
        ('"environment":{"A":"\\u00e9"}', "é"),
        ('"environment":{"A":"a","A":"b"}', "b"),
    ],
)
def test_stored_text_may_be_written_otherwise(instead: str, text: str) -> None:
    found = service_rows.service(STORED.replace('"environment":{}', instead, 1))
    assert found is not None and found.program.environment == {"A": text}


DAMAGED = [
    # a part of the smallest, and what stands there instead
    ('"environment":{}', '"environment":{"A":"\\ud800"}'),
    ('"environment":{}', '"environment":{"A":"\\udc80"}'),
    ('"environment":{}', '"environment":{"\\ud800":"a"}'),
    ('"environment":{}', '"environment":{"A":"\\uD800\\u0041"}'),
    ('"environment":{}', '"environment":{"A":"\x01"}'),
    ('"environment":{}', '"environment":{"A":"\n"}'),
    ('"environment":{}', '"environment":{"A":"\\x"}'),
    ('"environment":{}', '"environment":{"A":"\\u12"}'),
    ('"environment":{}', '"environment":{"A":1}'),
    ('"environment":{}', '"environment":{"A":null}'),
    ('"environment":{}', '"environment":{"A":"a",}'),
    ('"environment":{}', '"environment":[]'),
    ('"environment":{}', '"environment":null'),
    *(
        ('"pids_limit":2048', f'"pids_limit":{number}')
        for number in (
            "1.0",
            "1e2",
            "01",
            "+1",
            "true",
            '"1"',
            "NaN",
            "Infinity",
            "-Infinity",
            "1" * 5000,
        )
    ),
    ('"read_only":true', '"read_only":1'),
    ('"args":[]', '"args":{}'),
    ('"args":[]', '"args":[1]'),
    ('"args":[]', '"args":"a"'),
    ('"mode":"bridge"', '"mode":"bridged"'),
    ('"mode":"bridge"', '"mode":null'),
    ('"ports":[]', '"ports":["80:80"]'),
    ('"restart_delay_s":1.0', '"restart_delay_s":"1s"'),
    ('"volumes":[]', '"volumes":{}'),
    ('"volumes":[]', '"volumes":[],"more":1'),
    ('"name":"api",', ""),
    (STORED[-14:], STORED[-14:-1]),
    (STORED[-14:], STORED[-14:] + "}"),
    ('{"name"', '\ufeff{"name"'),
    ('{"name"', '\xa0{"name"'),
    ('{"name"', '[{"name"'),
    (STORED, "null"),
    (STORED, "1"),
    (STORED, "{}"),
    (STORED, ""),
    (STORED, SMALLEST),
    (STORED, '{"name":' * 100_000),
]


@pytest.mark.parametrize(("part", "instead"), DAMAGED)
def test_stored_text_that_is_damaged_is_nothing(part: str, instead: str) -> None:
    assert part in STORED
    assert service_rows.service(STORED.replace(part, instead, 1)) is None


@BOUNDED
@given(
    st.integers(0, len(STORED_FULL)),
    st.integers(0, 6),
    st.sampled_from(["null", '"', "1", "{}", ","]) | st.text(max_size=3),
)
@example(0, len(STORED_FULL), "{}")
def test_stored_text_with_a_few_characters_changed_is_read_or_refused(
    start: int, length: int, patch: str
) -> None:
    found = service_rows.service(STORED_FULL[:start] + patch + STORED_FULL[start + length :])
    if found is not None:
        assert service_rows.service(f"{service_rows.encode_service(found)} ") == found


def test_queries_of_the_stored_text_find_its_fields() -> None:
    """A query with another path would find nothing, and a service that sends raw frames would not be limited."""
    spec = service_spec(
        isolation={"capabilities": ["NET_RAW"], "resources": {"new_flows_limit": 7}},
        sysctls={"net.core.somaxconn": 4096},
        healthcheck={"tcp": 80},
        network={"networks": ["one"], "bandwidth": {"in": "8M"}},
    )
    with TemporaryStore() as store:
        with store.transaction():
            add_network(
                store,
                NetworkRecord("one", "", 1500, (SubnetRecord(4, "10.99.1.0/24", "10.99.1.1"),)),
            )
            put(store, "api", ("one",), manifest=service_rows.encode_service(spec))
            put(store, "db", ("one",), manifest=service_rows.encode_service(service_spec("db")))
        assert store.checked_services() == ["api"]
        api, db = store.snapshot(ALL).services
        assert (api.raw, db.raw) == (True, False)
        assert (api.sysctls, db.sysctls) == ((("net.core.somaxconn", "4096"),), ())
        assert api.limits == spec.network.limits and api.limits != db.limits
        assert api.bandwidth == (spec.network.bandwidth["in"], 0) != db.bandwidth
        text = service_rows.encode_service(spec)
        with store.transaction():
            put(store, "log", (), mode="share", provider="db", manifest=text)
        assert store.snapshot(ALL).services[1].raw
