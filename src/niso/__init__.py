"""The public API of niso: networking for services, without a daemon or a proxy.

Start with ``host = niso.connect()``. Names are imported on first use (PEP 562), so ``import niso``
is fast. Submodules, and names that start with an underscore, are not part of the API.
"""

# ruff: noqa: I001  # many names on one line

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # importing typing for it would cost more than this module

if TYPE_CHECKING:
    from niso.api.host import Host as Host, Repaired as Repaired, Swept as Swept
    from niso.api.host import connect as connect, plain as plain
    from niso.api.host_attachments import AttachRequest as AttachRequest, Changed as Changed
    from niso.api.host_cluster import ExistingEtcd as ExistingEtcd
    from niso.api.host_networks import CreatedNetwork as CreatedNetwork, HostName as HostName
    from niso.api.host_networks import HostNames as HostNames, Network as Network
    from niso.api.host_networks import NetworkLine as NetworkLine, NetworkMember as NetworkMember
    from niso.api.host_networks import RemovedNetwork as RemovedNetwork
    from niso.api.host_networks import Rules as Rules, Subnet as Subnet
    from niso.api.host_services import Executed as Executed, Forwarded as Forwarded
    from niso.api.host_services import Package as Package, Signalled as Signalled, Taken as Taken
    from niso.api.host_volumes import VolumeLine as VolumeLine
    from niso.api.without_host import Valid as Valid, import_compose as import_compose
    from niso.api.without_host import manifest_schema as manifest_schema
    from niso.api.without_host import stack_schema as stack_schema, validate as validate
    from niso.base.errors import Conflict as Conflict, Error as Error, ErrorGroup as ErrorGroup
    from niso.base.errors import InvalidInput as InvalidInput, KernelError as KernelError
    from niso.base.errors import NotFound as NotFound, ProcessError as ProcessError
    from niso.base.errors import UsageError as UsageError
    from niso.base.report import WarningEvent as WarningEvent, Completed as Completed
    from niso.base.report import CopyingPackage as CopyingPackage, Event as Event
    from niso.base.report import (
        ExpectingHealth as ExpectingHealth,
        Finished as Finished,
        Healthy as Healthy,
    )
    from niso.base.report import RemovingVolumes as RemovingVolumes, Starting as Starting
    from niso.base.report import Stopping as Stopping, Undoing as Undoing
    from niso.base.report import WaitingForHealth as WaitingForHealth
    from niso.base.report import WaitingForLock as WaitingForLock
    from niso.base.report import WaitingForPacket as WaitingForPacket
    from niso.change.activate import Outcome as Outcome
    from niso.change.attach import Attachment as Attachment
    from niso.change.boot import Marked as Marked, Restored as Restored
    from niso.change.cluster_hosts import ClusterHost as ClusterHost, ClusterMember as ClusterMember
    from niso.change.cluster_hosts import ClusterStatus as ClusterStatus, Forgotten as Forgotten
    from niso.change.cluster_join import Membership as Membership
    from niso.change.deactivate import Done as Done
    from niso.change.save_load import LoadedService as LoadedService, Saved as Saved
    from niso.change.stacks import StackDown as StackDown, StackUp as StackUp
    from niso.compose.compose_file import ImportedStack as ImportedStack
    from niso.compose.service_tables import Missing as Missing
    from niso.kernel.kinds.kind import Finding as Finding
    from niso.look.capture import Capture as Capture, Stage as Stage, Traced as Traced
    from niso.look.chains_on_path import OtherChain as OtherChain, OtherFirewalls as OtherFirewalls
    from niso.look.drops import Drop as Drop, Drops as Drops, Stats as Stats
    from niso.look.events import Events as Events
    from niso.look.explain import Explanation as Explanation, Judged as Judged
    from niso.look.explain import Judgement as Judgement, OtherHostObject as OtherHostObject
    from niso.look.flows import Flow as Flow, FlowEnd as FlowEnd, Flows as Flows
    from niso.look.host_ports import Port as Port, PublishedPort as PublishedPort
    from niso.look.listening import Listening as Listening, ListeningSocket as ListeningSocket
    from niso.look.learn import LearnedEntry as LearnedEntry, LearnedPolicy as LearnedPolicy
    from niso.look.learn import PolicyChange as PolicyChange
    from niso.look.map import Map as Map, MapEnd as MapEnd, MapFlow as MapFlow
    from niso.look.map import MapNetwork as MapNetwork, MapPolicy as MapPolicy
    from niso.look.map import MapService as MapService, MapState as MapState
    from niso.look.metrics import Metric as Metric, Sample as Sample
    from niso.look.other_hosts import ClusterLine as ClusterLine, ClusterPort as ClusterPort
    from niso.look.policies import MapChange as MapChange, PolicyEffect as PolicyEffect
    from niso.look.policies import PolicyEntry as PolicyEntry
    from niso.look.prove import Pong as Pong, Proof as Proof
    from niso.look.services import AttachedTo as AttachedTo, Deploy as Deploy
    from niso.look.services import OutsideName as OutsideName
    from niso.look.services import ServiceInstance as ServiceInstance
    from niso.look.services import Endpoint as Endpoint
    from niso.look.services import Process as Process, Service as Service
    from niso.look.services import ProcessLoad as ProcessLoad, ServiceLine as ServiceLine
    from niso.look.services import User as User
    from niso.look.top import FlowLoad as FlowLoad, Load as Load, ServiceLoad as ServiceLoad
    from niso.look.top import ServiceSocket as ServiceSocket, Top as Top
    from niso.runtime.event_log import Happened as Happened

_MODULES = {
    "api.host": "Host Repaired Swept connect plain",
    "api.host_attachments": "AttachRequest Changed",
    "api.host_cluster": "ExistingEtcd",
    "api.host_networks": "CreatedNetwork HostName HostNames Network NetworkLine NetworkMember"
    " RemovedNetwork Rules Subnet",
    "api.host_services": "Executed Forwarded Package Signalled Taken",
    "api.host_volumes": "VolumeLine",
    "api.without_host": "Valid import_compose manifest_schema stack_schema validate",
    "base.errors": "Conflict Error ErrorGroup InvalidInput KernelError NotFound ProcessError"
    " UsageError",
    "base.report": "WarningEvent Completed CopyingPackage Event ExpectingHealth Finished Healthy"
    " RemovingVolumes Starting Stopping Undoing WaitingForHealth WaitingForLock"
    " WaitingForPacket",
    "change.activate": "Outcome",
    "change.attach": "Attachment",
    "change.boot": "Marked Restored",
    "change.cluster_hosts": "ClusterHost ClusterMember ClusterStatus Forgotten",
    "change.cluster_join": "Membership",
    "change.deactivate": "Done",
    "change.save_load": "LoadedService Saved",
    "change.stacks": "StackDown StackUp",
    "compose.compose_file": "ImportedStack",
    "compose.service_tables": "Missing",
    "look.capture": "Capture Stage Traced",
    "look.chains_on_path": "OtherChain OtherFirewalls",
    "look.drops": "Drop Drops Stats",
    "look.events": "Events",
    "look.explain": "Explanation Judged Judgement OtherHostObject",
    "look.flows": "Flow FlowEnd Flows",
    "look.host_ports": "Port PublishedPort",
    "look.learn": "LearnedEntry LearnedPolicy PolicyChange",
    "look.listening": "Listening ListeningSocket",
    "look.map": "Map MapEnd MapFlow MapNetwork MapPolicy MapService MapState",
    "look.metrics": "Metric Sample",
    "look.other_hosts": "ClusterLine ClusterPort",
    "look.policies": "MapChange PolicyEffect PolicyEntry",
    "look.prove": "Pong Proof",
    "look.services": "AttachedTo Deploy Endpoint OutsideName Process ProcessLoad Service"
    " ServiceInstance ServiceLine User",
    "look.top": "FlowLoad Load ServiceLoad ServiceSocket Top",
    "runtime.event_log": "Happened",
    "kernel.kinds.kind": "Finding",
}
"""Module -> names imported from it, separated by spaces."""


if not TYPE_CHECKING:  # else a type checker accepts every name

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names.split():
                import importlib

                value: object = getattr(importlib.import_module(f"niso.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'niso' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(name for names in _MODULES.values() for name in names.split())
