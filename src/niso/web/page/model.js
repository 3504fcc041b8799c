// From what niso saw to what is drawn: nodes, edges, and groups of services folded into one box.
// Pure: no element is made here.

import { count, port, span } from "./words.js";

/** More services than this are folded by stack and networks. */
export const MOST_NODES = 60;
const MOST_PORTS = 3;

/** Return whether a service runs, or all instances of a service with replicas: 2/2 running. */
export function isRunning({ status }) {
  const [, running, wanted] = /^(\d+)\/(\d+) running$/.exec(status) ?? [];
  return status === "running" || (running !== undefined && running === wanted && running !== "0");
}

export const isUp = (service) => isRunning(service) || ["attached", "completed", "scheduled"].includes(service.status);

/** Return good, bad, waiting, off or plain: how a service is. */
export function condition(service) {
  if (service.status === "inactive") return "off";
  if (service.health === "unhealthy" || !(isUp(service) || ["starting", "restarting"].includes(service.status))) return "bad";
  if (service.status === "starting" || service.status === "restarting" || service.health === "starting") return "waiting";
  return service.health === "healthy" ? "good" : "plain";
}

/** Return the condition in words. */
export function conditionWords(service) {
  const more = service.status === "running" ? "" : `${service.status}, `;
  if (isRunning(service)) return more + (service.health ?? "no healthcheck");
  return service.status;
}

/** Return the flows of the last `period` seconds, which are open, or were begun, in it. */
export function recent(flows, period, onlyDenied) {
  return flows.filter(
    (flow) =>
      (flow.verdict !== "pass" || !onlyDenied) && (flow.open > 0 || (flow.ago !== null && flow.ago <= period)),
  );
}

const cellOf = (service) => service.networks.join(" ");

/** Return the id of each service's node: of its own, or of the box that it is folded into. */
function places(state, wanted, unfolded) {
  const ids = new Map();
  const groups = new Map();
  const many = state.services.length > MOST_NODES;
  for (const service of state.services) {
    const own = `s ${service.service}`;
    if (!many || matches(service, wanted)) {
      ids.set(service.service, own);
      continue;
    }
    const group = `g ${service.stack ?? ""} ${cellOf(service)}`;
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push(service);
  }
  for (const [group, members] of groups) {
    const folded = members.length > 1 && !unfolded.has(group);
    for (const service of members) ids.set(service.service, folded ? group : `s ${service.service}`);
  }
  return { ids, groups };
}

const matches = (service, wanted) => wanted !== "" && service.service.includes(wanted);

/** Return {nodes, edges, networks}: the map of a state.

    A node has id, kind, networks and what it shows. An edge has id, from, to, denied, flows, rate, bits. */
export function mapOf(state, flows, { wanted = "", unfolded = new Set() } = {}) {
  const { ids, groups } = places(state, wanted, unfolded);
  const nodes = new Map();
  const shares = new Map(state.services.map((service) => [service.service, service.shares]));
  const networks = new Map(state.services.map((service) => [service.service, service.networks]));
  const denied = new Map();
  for (const flow of flows) {
    if (flow.verdict !== "drop") continue;
    for (const end of [flow.from, flow.to]) {
      if (end.kind === "service") denied.set(ids.get(end.name), (denied.get(ids.get(end.name)) ?? 0) + 1);
    }
  }
  for (const service of state.services) {
    const id = ids.get(service.service);
    const on = service.networks.length === 0 && service.shares ? (networks.get(shares.get(service.service)) ?? []) : service.networks;
    if (id.startsWith("s ")) {
      nodes.set(id, { id, kind: "service", networks: on, name: service.service, service });
    } else if (!nodes.has(id)) {
      nodes.set(id, { id, kind: "fold", networks: on, ...folded(groups.get(id), denied.get(id) ?? 0) });
    }
  }
  addDoors(state, ids, nodes);
  const edges = new Map();
  const join = (from, to, flow) => {
    if (from === to) return;
    const id = `${from}|${to}|${flow.verdict}`;
    const edge = edges.get(id) ?? { id, from, to, denied: flow.verdict === "drop", audited: flow.verdict === "audit", flows: [], rate: 0, bits: 0, open: 0 };
    edge.flows.push(flow);
    edge.rate += flow.rate;
    edge.bits += flow.bits ?? 0;
    edge.open += flow.open;
    edges.set(id, edge);
  };
  for (const flow of flows) {
    const from = endNode(flow.from, ids, nodes, "client");
    const to = endNode(flow.to, ids, nodes, "server");
    const door = flow.published === null ? undefined : doorOf(nodes, flow, to);
    if (door === undefined) {
      join(from, to, flow);
    } else {
      join(from, door.id, flow);
      join(door.id, to, flow);
    }
  }
  for (const door of nodes.values()) {
    if (door.kind !== "door" || edges.has(`${door.id}|${door.target}|pass`)) continue;
    const id = `${door.id}|${door.target}|idle`;
    edges.set(id, { id, from: door.id, to: door.target, denied: false, flows: [], rate: 0, bits: 0, open: 0 });
  }
  return { nodes: [...nodes.values()], byId: nodes, edges: [...edges.values()], bundles: new Map(), networks: state.networks };
}

function folded(members, refusals) {
  const bad = members.filter((service) => condition(service) === "bad").length;
  const up = members.filter(isUp).length;
  return {
    name: members[0].stack ?? (members[0].networks.join(", ") || "no network"),
    lines: [count(members.length, "service"), `${up} up${bad ? `, ${bad} bad` : ""}`],
    members: members.map((service) => service.service),
    bad,
    refusals,
  };
}

function addDoors(state, ids, nodes) {
  for (const service of state.services) {
    if (service.status === "inactive") continue;
    const target = ids.get(service.service);
    for (const published of service.ports) {
      const own = doorTo(published);
      const door = target.startsWith("g ") ? { id: `d ${target}`, words: "published ports" } : own;
      const known = nodes.get(door.id) ?? { kind: "door", networks: [], target, ports: [], names: new Set(), ...door };
      known.ports.push(published);
      known.names.add(own.name);
      if (target.startsWith("g ")) known.name = [...known.names].slice(0, 1).join("") + (known.names.size > 1 ? ` +${known.names.size - 1}` : "");
      nodes.set(door.id, known);
    }
  }
}

/** Return the door of a published port; that of all IPv4 and of all IPv6 addresses is one. */
function doorTo(published) {
  const isWide = published.host_ip === "0.0.0.0" || published.host_ip === "::";
  const isLocal = published.host_ip.startsWith("127.") || published.host_ip === "::1";
  const host = isWide ? "*" : published.host_ip.includes(":") ? `[${published.host_ip}]` : published.host_ip;
  const name = `${host}:${span(published.host_port, published.range)}${published.proto === "tcp" ? "" : `/${published.proto}`}`;
  return { id: `d ${name}`, name, words: isLocal ? "this host only" : isWide ? "every address" : "this address" };
}

function doorOf(nodes, flow, target) {
  const leads = (one) =>
    one.proto === flow.proto && one.host_port <= flow.published && flow.published < one.host_port + (one.range ?? 1);
  for (const node of nodes.values()) if (node.kind === "door" && node.target === target && node.ports.some(leads)) return node;
}

function endNode(end, ids, nodes, side) {
  if (end.kind === "service" && ids.has(end.name)) return ids.get(end.name);
  const id = end.kind === "host" ? "h" : `o ${side} ${end.name}`;
  if (!nodes.has(id)) {
    const words = { host: "programs", outside: "another machine", others: "with few flows", gone: "no longer there" };
    const name = end.kind === "host" ? "this host" : end.name;
    nodes.set(id, { id, kind: end.kind === "host" ? "host" : side, networks: [], name, words: words[end.kind] ?? "" });
  }
  return id;
}

/** Return the edges that are drawn: on a crowded map, the flows that pass between two groups, either way, as one.

    `groupOf` returns the frame, wall or box that a node belongs to. Edges of `open` stay by themselves. */
export function bundled(edges, groupOf, open) {
  const shown = [];
  const bundles = new Map();
  for (const edge of edges) {
    const [from, to] = [groupOf(edge.from), groupOf(edge.to)];
    if (from === to || edge.denied || edge.audited || open.has(edge.id)) {
      shown.push(edge);
      continue;
    }
    const known = bundles.get(`b ${to}|${from}`);
    const id = known?.id ?? `b ${from}|${to}`;
    if (known) known.isMutual = true;
    const bundle = known ?? bundles.get(id) ?? { id, from, to, isMutual: false, members: [], denied: false, flows: [], rate: 0, bits: 0, open: 0 };
    bundle.members.push(edge);
    bundle.flows = bundle.flows.concat(edge.flows);
    for (const key of ["rate", "bits", "open"]) bundle[key] += edge[key];
    bundles.set(id, bundle);
  }
  return [...shown, ...bundles.values()];
}

/** Return the nodes and edges that are tied to a node, an edge or a bundle: {nodes, edges}. */
export function tiedTo(map, ids) {
  const [nodes, edges] = [new Set(), new Set()];
  for (const id of ids) {
    if (map.byId.has(id)) nodes.add(id);
    for (const edge of map.edges) if (edge.from === id || edge.to === id || edge.id === id || map.bundles.get(id)?.has(edge.id)) edges.add(edge);
  }
  for (const edge of edges) nodes.add(edge.from).add(edge.to);
  // behind a door is the service, and before it are its clients
  for (const door of [...nodes].filter((id) => id.startsWith("d "))) {
    for (const edge of map.edges) {
      if (edge.from !== door && edge.to !== door) continue;
      edges.add(edge);
      nodes.add(edge.from).add(edge.to);
    }
  }
  return { nodes, edges: new Set([...edges].map((edge) => edge.id)) };
}

/** Return the ports of an edge: :80, :443 and 2 more. */
export function portsOf(edge) {
  const ports = [...new Set(edge.flows.map(port))];
  const more = ports.length - MOST_PORTS + edge.flows.reduce((sum, flow) => sum + flow.not_shown, 0);
  return ports.slice(0, MOST_PORTS).join(", ") + (more > 0 ? ` +${more}` : "");
}
