"""niso: networking for services on Linux, without a daemon or a proxy.

Start with ``host = niso.connect()``. Names are imported on first use (PEP 562), so ``import niso``
is cheap. Names that start with an underscore and all submodules are not part of the API.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # importing typing for it would cost more than this module

if TYPE_CHECKING:
    from niso.api.as_json import plain as plain
    from niso.api.captures import Capture as Capture
    from niso.api.captures import Stage as Stage
    from niso.api.captures import Traced as Traced
    from niso.api.cluster_views import ClusterLine as ClusterLine
    from niso.api.cluster_views import ClusterPort as ClusterPort
    from niso.api.compose_files import ImportedStack as ImportedStack
    from niso.api.compose_files import Missing as Missing
    from niso.api.compose_files import import_compose as import_compose
    from niso.api.event_views import Events as Events
    from niso.api.event_views import Happened as Happened
    from niso.api.flow_views import Flow as Flow
    from niso.api.flow_views import FlowEnd as FlowEnd
    from niso.api.flow_views import Flows as Flows
    from niso.api.host import Host as Host
    from niso.api.host import connect as connect
    from niso.api.host_attachments import Attachment as Attachment
    from niso.api.host_attachments import AttachRequest as AttachRequest
    from niso.api.host_attachments import Changed as Changed
    from niso.api.host_cluster import ClusterHost as ClusterHost
    from niso.api.host_cluster import ClusterMember as ClusterMember
    from niso.api.host_cluster import ClusterStatus as ClusterStatus
    from niso.api.host_cluster import ExistingEtcd as ExistingEtcd
    from niso.api.host_cluster import Membership as Membership
    from niso.api.host_networks import CreatedNetwork as CreatedNetwork
    from niso.api.host_networks import HostName as HostName
    from niso.api.host_networks import HostNames as HostNames
    from niso.api.host_networks import Network as Network
    from niso.api.host_networks import NetworkLine as NetworkLine
    from niso.api.host_networks import NetworkMember as NetworkMember
    from niso.api.host_networks import PublishedPort as PublishedPort
    from niso.api.host_networks import RemovedNetwork as RemovedNetwork
    from niso.api.host_networks import Rules as Rules
    from niso.api.host_networks import Subnet as Subnet
    from niso.api.host_services import Package as Package
    from niso.api.host_stacks import StackDown as StackDown
    from niso.api.host_stacks import StackUp as StackUp
    from niso.api.learning import LearnedEntry as LearnedEntry
    from niso.api.learning import LearnedPolicy as LearnedPolicy
    from niso.api.learning import PolicyChange as PolicyChange
    from niso.api.map_views import Map as Map
    from niso.api.map_views import MapChange as MapChange
    from niso.api.map_views import MapEnd as MapEnd
    from niso.api.map_views import MapFlow as MapFlow
    from niso.api.map_views import MapNetwork as MapNetwork
    from niso.api.map_views import MapPolicy as MapPolicy
    from niso.api.map_views import MapService as MapService
    from niso.api.map_views import MapState as MapState
    from niso.api.metric_views import Metric as Metric
    from niso.api.metric_views import Sample as Sample
    from niso.api.outcomes import Done as Done
    from niso.api.outcomes import Outcome as Outcome
    from niso.api.outcomes import Restored as Restored
    from niso.api.outside_views import OutsideName as OutsideName
    from niso.api.packets import Drop as Drop
    from niso.api.packets import Drops as Drops
    from niso.api.packets import Explanation as Explanation
    from niso.api.packets import Judged as Judged
    from niso.api.packets import Judgement as Judgement
    from niso.api.packets import OtherHostObject as OtherHostObject
    from niso.api.packets import Pong as Pong
    from niso.api.packets import Proof as Proof
    from niso.api.policy_views import PolicyEffect as PolicyEffect
    from niso.api.policy_views import PolicyEntry as PolicyEntry
    from niso.api.published_ports import Port as Port
    from niso.api.service_results import Executed as Executed
    from niso.api.service_results import Forwarded as Forwarded
    from niso.api.service_results import Marked as Marked
    from niso.api.service_results import Signalled as Signalled
    from niso.api.service_results import Taken as Taken
    from niso.api.service_views import AttachedTo as AttachedTo
    from niso.api.service_views import Endpoint as Endpoint
    from niso.api.service_views import Process as Process
    from niso.api.service_views import Service as Service
    from niso.api.service_views import ServiceLine as ServiceLine
    from niso.api.service_views import User as User
    from niso.api.top_views import FlowLoad as FlowLoad
    from niso.api.top_views import Load as Load
    from niso.api.top_views import ServiceLoad as ServiceLoad
    from niso.api.top_views import ServiceSocket as ServiceSocket
    from niso.api.top_views import Top as Top
    from niso.api.upkeep import Finding as Finding
    from niso.api.upkeep import Repaired as Repaired
    from niso.api.upkeep import Swept as Swept
    from niso.api.validation import Valid as Valid
    from niso.api.validation import manifest_schema as manifest_schema
    from niso.api.validation import stack_schema as stack_schema
    from niso.api.validation import validate as validate
    from niso.base.errors import Conflict as Conflict
    from niso.base.errors import Error as Error
    from niso.base.errors import ErrorGroup as ErrorGroup
    from niso.base.errors import InvalidInput as InvalidInput
    from niso.base.errors import KernelError as KernelError
    from niso.base.errors import NotFound as NotFound
    from niso.base.errors import ProcessError as ProcessError
    from niso.base.errors import UsageError as UsageError
    from niso.base.report import Caution as Caution
    from niso.base.report import Event as Event
    from niso.base.report import Expects as Expects
    from niso.base.report import Finished as Finished
    from niso.base.report import WaitingForLock as WaitingForLock
    from niso.base.service_events import Completed as Completed
    from niso.base.service_events import CopyingPackage as CopyingPackage
    from niso.base.service_events import Healthy as Healthy
    from niso.base.service_events import RemovingVolumes as RemovingVolumes
    from niso.base.service_events import Starting as Starting
    from niso.base.service_events import Stopping as Stopping
    from niso.base.service_events import Undoing as Undoing
    from niso.base.service_events import WaitingForHealth as WaitingForHealth
    from niso.base.service_events import WaitingForPacket as WaitingForPacket
    from niso.explain.service_stats import Stats as Stats

_MODULES = {
    "api.as_json": "plain",
    "api.validation": "Valid manifest_schema stack_schema validate",
    "api.captures": "Capture Stage Traced",
    "api.cluster_views": "ClusterLine ClusterPort",
    "api.event_views": "Events Happened",
    "api.flow_views": "Flow FlowEnd Flows",
    "api.host": "Host connect",
    "api.host_attachments": "AttachRequest Attachment Changed",
    "api.host_cluster": "ClusterHost ClusterMember ClusterStatus ExistingEtcd Membership",
    "api.host_networks": "CreatedNetwork HostName HostNames Network NetworkLine NetworkMember"
    " PublishedPort RemovedNetwork Rules Subnet",
    "api.compose_files": "ImportedStack Missing import_compose",
    "api.learning": "LearnedEntry LearnedPolicy PolicyChange",
    "api.map_views": "Map MapChange MapEnd MapFlow MapNetwork MapPolicy MapService MapState",
    "api.metric_views": "Metric Sample",
    "api.outside_views": "OutsideName",
    "api.packets": "Drop Drops Explanation Judged Judgement OtherHostObject Pong Proof",
    "api.policy_views": "PolicyEffect PolicyEntry",
    "api.published_ports": "Port",
    "api.host_services": "Package",
    "api.outcomes": "Done Outcome Restored",
    "api.host_stacks": "StackDown StackUp",
    "api.service_results": "Executed Forwarded Marked Signalled Taken",
    "api.service_views": "AttachedTo Endpoint Process Service ServiceLine User",
    "api.top_views": "FlowLoad Load ServiceLoad ServiceSocket Top",
    "api.upkeep": "Finding Repaired Swept",
    "base.errors": "Conflict Error ErrorGroup InvalidInput KernelError NotFound ProcessError"
    " UsageError",
    "base.report": "Caution Event Expects Finished WaitingForLock",
    "base.service_events": "Completed CopyingPackage Healthy RemovingVolumes Starting Stopping"
    " Undoing WaitingForHealth WaitingForPacket",
    "explain.service_stats": "Stats",
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
