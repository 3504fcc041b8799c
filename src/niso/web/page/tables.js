// The same as tables, and the details beside them.

import { h, s } from "./dom.js";
import { conditionWords, isUp } from "./model.js";
import { ago, count, line, moves, perSecond, period, rate, span, target, unrecorded } from "./words.js";

const MOST_ROWS = 500;
const MOST_CARDS = 30;

const said = (flow) => ({ drop: "denied", audit: "would be denied" })[flow.verdict] ?? (flow.agrees ? "passes" : "passed, now denied");
const traffic = (flow) => (flow.bits > 0 ? rate(flow.bits) : "");
const keyOf = (flow) => `${flow.from.kind} ${flow.from.name} ${flow.to.kind} ${flow.to.name} ${flow.port} ${flow.proto} ${flow.verdict}`;

function table(caption, columns, rows, keys) {
  return h(
    "table",
    {},
    h("caption", {}, caption),
    h("thead", {}, h("tr", {}, columns.map(([name, kind]) => h("th", { scope: "col", class: kind }, name)))),
    h("tbody", {}, rows.map((cells, i) => h("tr", { "data-key": keys[i].key, class: keys[i].class }, cells.map((cell, column) => h(column === 0 ? "th" : "td", { scope: column === 0 ? "row" : null, class: columns[column][1] }, cell))))),
  );
}

function cut(list) {
  const more = list.length - MOST_ROWS;
  return [list.slice(0, MOST_ROWS), more > 0 ? h("p", { class: "note" }, `${more} more; find a service to see fewer`) : null];
}

/** Return the tables of flows and services. */
export function tables(state, flows, services, choose) {
  const name = (end) => (end.kind === "service" ? h("button", { type: "button", class: "link", onclick: () => choose(`s ${end.name}`) }, end.name) : end.name);
  const policies = policiesOf(state);
  const [some, more] = cut(flows);
  const [few, others] = cut(services);
  return [
    table(
      `Flows (${flows.length})${flows.length ? `: ${verdicts(flows)}` : ""}`,
      [["From", "end"], ["To", "end"], ["Verdict"], ["Traffic", "number"], ["New", "number"], ["In all", "number"], ["Open", "number"], ["Last", "number"], ["By"], ["What would allow it"]],
      some.map((flow) => [
        name(flow.from),
        [name(flow.to), `:${flow.port}/${flow.proto}`],
        said(flow),
        traffic(flow),
        perSecond(flow.rate),
        `${flow.new}`,
        flow.open ? `${flow.open}` : "",
        ago(flow.ago),
        [flow.published === null ? "" : `published ${flow.published}`, flow.words].filter(Boolean).join(", ") || "–",
        flow.changes.map((change) => h("code", {}, `${change.service}: ${line(change, policies.get(change.service))}`)),
      ]),
      some.map((flow) => ({ key: keyOf(flow), class: flow.verdict })),
    ),
    more,
    table(
      `Services (${services.length})`,
      [["Service"], ["Status"], ["Health"], ["CPU", "number"], ["Memory", "number"], ["In", "number"], ["Out", "number"], ["New", "number"], ["Denied in", "number"], ["Denied out", "number"], ["Networks"], ["Addresses"], ["Ports"]],
      few.map((service) => [
        name({ kind: "service", name: service.service }),
        service.status,
        healthWords(service) ?? "–",
        service.cpu === null ? "–" : `${service.cpu.toFixed(1)} %`,
        service.memory === null ? "–" : `${(service.memory / 1048576).toFixed(1)} MiB`,
        rate(service.received),
        rate(service.sent),
        perSecond(service.new),
        service.denied_in === null ? "–" : `${service.denied_in}`,
        service.denied_out === null ? "–" : `${service.denied_out}`,
        service.networks.join(", ") || "–",
        service.address.join(", ") || "–",
        ports(service).join(", ") || "–",
      ]),
      few.map((service) => ({ key: service.service, class: service.health === "unhealthy" ? "drop" : "" })),
    ),
    others,
    state.not_shown > 0 && h("p", { class: "note" }, `${count(state.not_shown, "flow")} not shown: ${pairsCut(state)}.`),
    unrecorded(state) && h("p", { class: "note" }, unrecorded(state)),
  ];
}

/** Return between which ends flows are left out. */
function pairsCut(state) {
  const pairs = state.flows.filter((flow) => flow.not_shown > 0).map((flow) => `${flow.from.name} → ${flow.to.name} ${flow.verdict} +${flow.not_shown}`);
  return pairs.join(", ") || "there are more than niso web shows";
}

function ports(service) {
  return [
    ...new Set(
      service.ports.map((one) => {
        const wide = one.host_ip === "0.0.0.0" || one.host_ip === "::";
        const host = wide ? "" : one.host_ip.includes(":") ? `[${one.host_ip}]:` : `${one.host_ip}:`;
        return `${host}${span(one.host_port, one.range)}→${span(one.container_port, one.range)}${one.proto === "tcp" ? "" : `/${one.proto}`}`;
      }),
    ),
  ];
}

/** Return a denied flow with the lines that would let it pass. */
function card(flow, files, policies) {
  const words = flow.verdict === "audit" ? "passes, would be denied" : `denied ${flow.new}×`;
  return h(
    "li",
    { class: `card ${flow.verdict}`, "data-key": keyOf(flow) },
    h("h3", {}, `${flow.from.name} → ${target(flow)}`),
    h("p", {}, `${words}, last ${ago(flow.ago)}: ${flow.words ?? "by a policy that has changed since"}`),
    flow.changes.length
      ? flow.changes.map((change) => [
          h("pre", {}, h("code", {}, line(change, policies.get(change.service)))),
          h("p", { class: "note" }, `in the policy of ${change.service}${files.get(change.service) ? `, ${files.get(change.service)}` : ""}; add it only if they should connect`),
        ])
      : h("p", { class: "note" }, "No line of a manifest would allow it."),
  );
}

/** Return the denied flows of some, and those that an audit lets pass, each as a list with its title. */
function denied(state, flows) {
  const [files, policies] = [filesOf(state), policiesOf(state)];
  return [["drop", "Not allowed"], ["audit", "In audit: would be denied"]].map(([verdict, title]) => {
    const own = flows.filter((flow) => flow.verdict === verdict).sort((a, b) => b.rate - a.rate || (a.ago ?? 1e9) - (b.ago ?? 1e9));
    return own.length > 0 && [
      h("h2", {}, `${title} (${own.length})`),
      h("ul", { class: "cards" }, own.slice(0, MOST_CARDS).map((flow) => card(flow, files, policies))),
      own.length > MOST_CARDS && h("p", { class: "note" }, `${own.length - MOST_CARDS} more in the table`),
    ];
  });
}

const policiesOf = (state) => new Map(state.services.map((service) => [service.service, service.policy]));
const filesOf = (state) => new Map(state.services.map((service) => [service.service, service.file]));

/** Return what is beside the map when nothing is chosen. */
export function overview(state, flows) {
  const passing = flows.filter((flow) => flow.verdict === "pass").sort((a, b) => (b.bits ?? 0) - (a.bits ?? 0) || b.rate - a.rate || b.open - a.open || b.new - a.new);
  return [
    denied(state, flows),
    passing.length === flows.length && flows.length > 0 && [h("h2", {}, "Not allowed (0)"), h("p", { class: "note" }, "Nothing was denied in this period.")],
    h("h2", {}, `Passed (${passing.length})`),
    brief(passing.slice(0, MOST_CARDS), (flow) => `${flow.from.name} → ${target(flow)}`),
    passing.length > MOST_CARDS && h("p", { class: "note" }, `${passing.length - MOST_CARDS} more in the table`),
  ];
}

/** Return how many of some flows passed, were denied and are in audit: 17 passed, 2 denied. */
function verdicts(flows) {
  const of = (verdict) => flows.filter((flow) => flow.verdict === verdict).length;
  return [[of("pass"), "passed"], [of("drop"), "denied"], [of("audit"), "in audit"]].filter(([number]) => number > 0).map(([number, word]) => `${number} ${word}`).join(", ");
}

/** Return what a line stands for when it is chosen. */
export function edgeDetails(state, edges, close) {
  const flows = flowsOf(edges);
  const list = (title, some) => some.length > 0 && [h("h2", {}, `${title} (${some.length})`), brief(some.slice(0, 200), (flow) => `${flow.from.name} → ${target(flow)}`)];
  return [
    headOf(titleOf(edges), close),
    h("p", {}, flows.length > 0 ? `${count(flows.length, "flow")}: ${verdicts(flows)}` : "A published port without a flow in this period."),
    denied(state, flows),
    list("Passed", flows.filter((flow) => flow.verdict === "pass")),
  ];
}

const flowsOf = (edges) => [...new Set(edges.flatMap((edge) => edge.flows))].sort((a, b) => (b.bits ?? 0) - (a.bits ?? 0) || b.new - a.new);

function titleOf(edges) {
  const flows = flowsOf(edges);
  if (edges.length === 1 && flows.length > 0) return `${flows[0].from.name} → ${flows[0].to.name}`;
  return flows.length > 0 ? count(flows.length, "flow") : edges[0].from.slice(2);
}

const MOST_ON_CARD = 8;

/** Return the card of what is pointed at: a node, or the edges of a line. */
export function cardOf(state, node, edges, map) {
  if (node === undefined) {
    const flows = flowsOf(edges);
    return [
      h("h3", {}, titleOf(edges)),
      flows.slice(0, MOST_ON_CARD).map((flow) => h("p", { class: flow.verdict }, edges.length > 1 ? `${flow.from.name} → ` : "", target(flow), flow.verdict === "pass" ? "" : ` ${said(flow)}`, h("span", {}, moves(flow)))),
      flows.length > MOST_ON_CARD && h("p", { class: "note" }, `and ${flows.length - MOST_ON_CARD} more`),
      flows.length === 0 && h("p", { class: "note" }, "published; no flow in this period"),
    ];
  }
  const own = [...new Set(map.edges.filter((edge) => edge.from === node.id || edge.to === node.id).flatMap((edge) => edge.flows))];
  const refused = own.filter((flow) => flow.verdict === "drop").sort((a, b) => (a.ago ?? 1e9) - (b.ago ?? 1e9));
  const last = refused.slice(0, 3).map((flow) => h("p", { class: "drop" }, `${flow.from.name} → ${target(flow)} denied`, h("span", {}, ago(flow.ago))));
  if (node.kind !== "service") return [h("h3", {}, node.name), h("p", { class: "note" }, node.words ?? node.lines.join(", ")), h("p", {}, count(own.length, "flow")), last];
  const { service } = node;
  const facts = [
    ["health", healthWords(service) ?? conditionWords(service)],
    ["address", service.address.join(", ")],
    ["networks", service.networks.join(", ")],
    ["in, out", service.received === null ? null : `${rate(service.received)}, ${rate(service.sent)}`],
    ["processor", service.cpu === null ? null : `${service.cpu.toFixed(1)} % of one`],
    ["memory", service.memory === null ? null : `${(service.memory / 1048576).toFixed(1)} MiB`],
  ].filter(([, value]) => value);
  return [h("h3", {}, node.name), h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])), last];
}

function brief(flows, name) {
  if (flows.length === 0) return h("p", { class: "note" }, "None in this period.");
  return h(
    "table",
    { class: "brief" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "flow"), h("th", { scope: "col", class: "number" }, "traffic"), h("th", { scope: "col", class: "number" }, "new"))),
    h(
      "tbody",
      {},
      flows.map((flow) =>
        h(
          "tr",
          { "data-key": keyOf(flow), class: flow.verdict },
          h("th", { scope: "row" }, name(flow), flow.verdict === "drop" ? " denied" : ""),
          h("td", { class: "number" }, traffic(flow) || (flow.open ? "" : ago(flow.ago))),
          h("td", { class: "number" }, perSecond(flow.rate) || (flow.open ? `${flow.open} open` : `${flow.new}×`)),
        ),
      ),
    ),
  );
}

function headOf(title, close) {
  return h("div", { class: "head" }, h("h2", {}, title), h("button", { type: "button", class: "close", "aria-label": "Close", "aria-keyshortcuts": "Escape", onclick: close }, "×"));
}

/** Return the details of a chosen node. */
export function details(state, flows, node, close) {
  const head = headOf(node.name, close);
  if (node.kind !== "service") {
    const ends = flows.filter((flow) => [flow.from, flow.to].some((end) => isOf(end, node)));
    return [head, h("p", { class: "note" }, node.words ?? node.lines?.join(", ")), h("h2", {}, `Flows (${ends.length})`), brief(ends.slice(0, 200), (flow) => `${flow.from.name} → ${target(flow)}`)];
  }
  const { service } = node;
  const own = flows.filter((flow) => [flow.from.name, flow.to.name].includes(service.service));
  const into = own.filter((flow) => flow.to.name === service.service && flow.verdict !== "drop");
  const out = own.filter((flow) => flow.from.name === service.service && flow.verdict !== "drop");
  const facts = [
    ["status", service.status],
    ["health", healthWords(service) ?? "no healthcheck"],
    ["processor", service.cpu === null ? null : `${service.cpu.toFixed(1)} % of one`],
    ["memory", service.memory === null ? null : `${(service.memory / 1048576).toFixed(1)} MiB`],
    ["up for", service.uptime === null ? null : period(service.uptime)],
    ["networks", service.networks.join(", ")],
    ["network of", service.shares],
    ["addresses", service.address.join(", ")],
    ["ports", ports(service).join(", ")],
    ["in, out", service.received === null ? null : `${rate(service.received)}, ${rate(service.sent)}`],
    ["denied in, out", service.denied_in === null ? null : `${service.denied_in}, ${service.denied_out} packets`],
    ["stack", service.stack],
    ["audit until", service.audit_until],
    ["manifest", service.file],
  ].filter(([, value]) => value);
  return [
    head,
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    curve(service.past ?? []),
    h("h2", {}, "Policy"),
    policy(service.policy),
    denied(state, own),
    h("h2", {}, `From others (${into.length})`),
    brief(into.slice(0, 200), (flow) => `${flow.from.name} → :${flow.port}/${flow.proto}`),
    h("h2", {}, `To others (${out.length})`),
    brief(out.slice(0, 200), (flow) => `→ ${target(flow)}`),
  ];
}

/** Return the traffic of the last hour as a curve. */
function curve(past) {
  const most = Math.max(...past, 0);
  if (past.length < 2 || most === 0) return null;
  const points = past.map((value, i) => `${(((i + 60 - past.length) / 59) * 240).toFixed(1)} ${(39 - (value / most) * 37).toFixed(1)}`);
  return [
    h("h2", {}, `Traffic of the last hour, at most ${rate(most)}`),
    s("svg", { class: "curve", viewBox: "0 0 240 40", preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { d: `M${points.join("L")}` })),
  ];
}

/** Return the health with the age of the last probe, or null without a health check. */
const healthWords = (service) => (service.health === null || service.health_age === null ? service.health : `${service.health} ${period(service.health_age)} ago`);

const isOf = (end, node) =>
  node.kind === "fold" ? node.members.includes(end.name) : node.kind === "host" ? end.kind === "host" : end.kind !== "service" && end.name === node.name;

function policy(own) {
  if (own === null) return h("p", { class: "note" }, "None: whoever is on its networks may connect.");
  const list = (entries) => (entries.length ? entries.map((entry) => h("code", {}, entry)) : "nobody");
  return h(
    "dl",
    {},
    h("dt", {}, "may connect"),
    h("dd", {}, own.allow_from === null ? "everybody" : list(own.allow_from)),
    own.deny_from.length > 0 && [h("dt", {}, "may not"), h("dd", {}, list(own.deny_from))],
    h("dt", {}, "connects to"),
    h("dd", {}, own.egress_allow === null ? "anywhere" : own.egress_allow.length ? list(own.egress_allow) : "nowhere"),
    own.egress_deny.length > 0 && [h("dt", {}, "not to"), h("dd", {}, list(own.egress_deny))],
  );
}

/** Return the figures of the first line. */
export function figures(state, flows) {
  const up = state.services.filter(isUp).length;
  const bad = state.services.filter((service) => service.health === "unhealthy").length;
  const refused = flows.filter((flow) => flow.verdict === "drop").length;
  const audited = flows.filter((flow) => flow.verdict === "audit").length;
  const bits = state.services.reduce((sum, service) => sum + (service.received ?? 0), 0);
  const item = (number, words, kind) => h("li", { class: kind }, h("b", {}, `${number}`), ` ${words}`);
  return [
    item(up, `of ${state.services.length} up`),
    bad > 0 && item(bad, "unhealthy", "bad"),
    item(flows.length, flows.length === 1 ? "flow" : "flows"),
    refused > 0 && item(refused, "denied", "bad"),
    audited > 0 && item(audited, "in audit", "waiting"),
    item(rate(bits), ""),
  ].filter(Boolean);
}

