// Draw a placed map as SVG.

import { s } from "./dom.js";
import { condition, conditionWords, portsOf } from "./model.js";
import { routes } from "./routes.js";
import { moves, perSecond, rate, short } from "./words.js";

const SHIELD = "M6 .500L11.500 2.600V6.200c0 3.300-2.400 5-5.500 6.100C2.900 11.200.500 9.500.500 6.200V2.600z";
const MOST_LABELS = 40;
const SPARK = { width: 36, height: 14 };
const COLOURS = 6;

/** Return the children of the picture.

    `view` has selected (id or null), chosen (ids; the rest is dimmed if there are any), focused (id),
    history (by service) and the handler choose. */
export function picture(map, placed, view) {
  const lines = routes(map.edges, placed.at);
  const colours = new Map([...placed.frames].map((frame) => frame.network).sort().map((name, i) => [name, i % COLOURS]));
  const { chosen } = view;
  const near = new Set(chosen);
  for (const edge of map.edges) {
    if (chosen.has(edge.from)) near.add(edge.to);
    if (chosen.has(edge.to)) near.add(edge.from);
  }
  const isDim = (id) => chosen.size > 0 && !near.has(id);
  const touches = (edge) => chosen.size === 0 || chosen.has(edge.from) || chosen.has(edge.to);
  const drawn = map.edges.filter((edge) => lines.has(edge.id));
  const sorted = [...drawn].sort((a, b) => loudness(a) - loudness(b));
  const labelled = sorted.filter((edge) => edge.flows.length > 0 && touches(edge)).slice(-MOST_LABELS).reverse();
  return [
    definitions(),
    map.nodes.length === 0 && s("text", { x: 0, y: 0, "text-anchor": "middle" }, "There are no services yet."),
    placed.wall && wall(placed.wall),
    s("g", { class: "frames" }, placed.frames.map((frame) => frameOf(frame, colours.get(frame.network)))),
    s("g", { class: "edges" }, sorted.map((edge) => edgeOf(edge, lines.get(edge.id), touches(edge)))),
    s("g", { class: "nodes" }, map.nodes.map((node) => nodeOf(node, placed.at.get(node.id), colours, view, isDim(node.id)))),
    s("g", { class: "labels", "aria-hidden": "true" }, labelsOf(labelled, lines, [...placed.at.values()])),
  ];
}

const loudness = (edge) => (edge.denied ? 1e9 : edge.audited ? 1e8 : 0) + edge.bits + edge.rate * 1000 + edge.open + edge.flows.length / 1000;

function definitions() {
  const arrow = (id) =>
    s("marker", { id, class: id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" }, s("path", { d: "M0 .500L8 4 0 7.500z" }));
  return s("defs", {}, ["arrow", "arrow-live", "arrow-audit"].map(arrow));
}

function wall(box) {
  return s(
    "g",
    { class: "wall" },
    s("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 10 }),
    s("text", { x: box.x + box.width / 2, y: box.y + 23, class: "title" }, "this host"),
    s("text", { x: box.x + box.width / 2, y: box.y + 39, class: "note" }, "published ports"),
  );
}

function frameOf(frame, colour) {
  const notes = [...frame.subnets, ...(frame.internal ? ["internal"] : [])].join("  ");
  return s(
    "g",
    { class: `frame c${colour}`, "data-key": frame.network },
    s("rect", { x: frame.x, y: frame.y, width: frame.width, height: frame.height, rx: 12 }),
    s("text", { x: frame.title, y: frame.y + 23, class: "title" }, short(frame.network, 24)),
    s("text", { x: frame.title, y: frame.y + 39, class: "note" }, short(notes, 30)),
    s("title", {}, `network ${frame.network} ${notes}`),
  );
}

/** Return the width of a line by its bits per second: 1.5 up to 4 kb/s, 4.7 at 100 Mb/s. */
const widthOf = (bits) => 1.5 + 0.7 * Math.min(5, Math.max(0, Math.log10(bits + 1) - 3.6));
const isLive = (edge) => edge.rate > 0 || edge.bits > 0;

function edgeOf(edge, line, touches) {
  const live = isLive(edge);
  const kind = edge.denied ? "drop" : edge.audited ? "audit" : live ? "live" : edge.flows.length === 0 ? "idle" : "";
  const width = edge.denied || edge.audited ? 1.6 : live ? widthOf(edge.bits || edge.rate * 3000) : 1.2;
  return s(
    "g",
    { class: `edge ${kind}${touches ? "" : " dim"}`, "data-key": edge.id },
    s("path", { class: "hit", d: line.path }),
    s("path", { class: "line", d: line.path, "stroke-width": width.toFixed(1), "marker-end": edge.denied ? null : edge.audited ? "url(#arrow-audit)" : live ? "url(#arrow-live)" : "url(#arrow)" }),
    edge.denied && stop(line),
    s("title", {}, titleOf(edge)),
  );
}

function stop({ end, label }) {
  const x = end.x + (label.anchor === "end" ? -8 : 8);
  return s("g", { class: "stop" }, s("circle", { cx: x, cy: end.y, r: 5.5 }), s("path", { d: `M${x - 3.5} ${end.y + 3.500}L${x + 3.5} ${end.y - 3.5}` }));
}

function titleOf(edge) {
  if (edge.flows.length === 0) return "published; no flow in this period";
  return edge.flows
    .slice(0, 12)
    .map((flow) => `${flow.from.name} → ${flow.to.name}:${flow.port}/${flow.proto}${{ drop: " denied", audit: " would be denied" }[flow.verdict] ?? ""}  ${moves(flow)}`)
    .join("\n");
}

function wordsOf(edge) {
  if (edge.denied) return `${portsOf(edge)} denied`;
  if (edge.audited) return `${portsOf(edge)} audit`;
  const more = (edge.bits > 0 && rate(edge.bits)) || perSecond(edge.rate) || (edge.open ? `${edge.open} open` : "");
  // a door has the port in its box
  return edge.to.startsWith("d ") ? more : `${portsOf(edge)} ${more}`.trim();
}

/** Return the labels that fit beside each other and the boxes, those of the loudest edges first. */
function labelsOf(edges, lines, boxes) {
  const taken = boxes.map((box) => ({ x: box.x, y: box.y, right: box.x + box.width, bottom: box.y + box.height }));
  const shown = [];
  for (const edge of edges) {
    const { label } = lines.get(edge.id);
    const width = wordsOf(edge).length * 6.4;
    const x = label.anchor === "end" ? label.x - width : label.x;
    for (const y of label.ys) {
      const box = { x, y: y - 10, right: x + width, bottom: y + 2 };
      if (taken.some((other) => box.x < other.right && other.x < box.right && box.y < other.bottom && other.y < box.bottom)) continue;
      taken.push(box);
      shown.push(labelOf(edge, { ...label, y }));
      break;
    }
  }
  return shown;
}

function labelOf(edge, label) {
  return s(
    "text",
    { x: label.x, y: label.y, "text-anchor": label.anchor, class: edge.denied ? "drop" : edge.audited ? "audit" : isLive(edge) ? "live" : "", "data-key": edge.id },
    wordsOf(edge),
  );
}

function nodeOf(node, box, colours, view, dim) {
  const shape = { service: serviceOf, fold: foldOf }[node.kind] ?? placeOf;
  const chosen = view.selected === node.id;
  const state = node.kind === "service" ? condition(node.service) : node.kind === "fold" && node.bad ? "bad" : "";
  return s(
    "g",
    {
      class: `node ${node.kind} ${state}${chosen ? " chosen" : ""}${dim ? " dim" : ""}`,
      "data-key": node.id,
      transform: `translate(${box.x.toFixed(1)} ${box.y.toFixed(1)})`,
      role: "button",
      tabindex: view.focused === node.id ? 0 : -1,
      "aria-label": spoken(node),
      "aria-pressed": `${chosen}`,
      onclick: () => view.choose(node.id),
    },
    s("rect", { class: "box", width: box.width, height: box.height, rx: node.kind === "client" || node.kind === "server" ? 20 : 8 }),
    shape(node, box, colours, view),
    s("title", {}, node.name),
  );
}

function spoken(node) {
  if (node.kind === "service") return `service ${node.name}, ${conditionWords(node.service)}, networks ${node.networks.join(", ") || "none"}`;
  if (node.kind === "fold") return `${node.name}: ${node.lines.join(", ")}${node.refusals ? `, ${node.refusals} denied` : ""}; Enter unfolds`;
  if (node.kind === "door") return `published port ${node.name}, ${node.words}`;
  return `${node.name}, ${node.words}`;
}

function chips(networks, colours) {
  return networks.map((name, i) => s("rect", { class: `chip c${colours.get(name) ?? 0}`, x: 12 + i * 22, y: -2.5, width: 18, height: 5, rx: 2.5 }, s("title", {}, name)));
}

function serviceOf(node, box, colours, view) {
  const { service } = node;
  const hasPolicy = service.policy !== null;
  return [
    chips(node.networks, colours),
    mark(condition(service)),
    nameOf(node.name, 30, box.width - (hasPolicy ? 26 : 10)),
    hasPolicy && s("path", { class: `shield${service.audit_until ? " audit" : ""}`, transform: `translate(${box.width - 22} 9)`, d: SHIELD }),
    s("text", { class: "health", x: 12, y: 43 }, service.shares ? `in the network of ${short(service.shares, 8)}` : conditionWords(service)),
    service.received !== null && s("text", { class: "rates", x: 12, y: 62 }, `↓ ${rate(service.received)}  ↑ ${rate(service.sent)}`),
    spark(view.history.get(node.name) ?? [], box.width - SPARK.width - 10, 32),
  ];
}

const SIZES = new Map([["", 15.5], ["smaller", 14], ["smallest", 12.5]]); // as in style.css
let pen = null;

/** Return a name between two places: smaller if it is long, and cut if that is not enough. */
function nameOf(name, x, right) {
  pen ??= document.createElement("canvas").getContext("2d");
  const family = getComputedStyle(document.body).fontFamily;
  const fits = (words, size) => {
    pen.font = `600 ${size}px ${family}`;
    return pen.measureText(words).width <= right - x;
  };
  const [kind, size] = [...SIZES].find(([, one]) => fits(name, one)) ?? [...SIZES].at(-1);
  let most = name.length;
  while (most > 4 && !fits(short(name, most), size)) most--;
  return s("text", { class: `name ${kind}`, x, y: 24 }, short(name, most));
}

/** Return a mark whose form says the same as its colour. */
function mark(state) {
  const forms = {
    good: s("circle", { cx: 18, cy: 19, r: 5 }),
    plain: s("circle", { cx: 18, cy: 19, r: 4.5 }),
    waiting: s("path", { d: "M18 13L24 19 18 25 12 19z" }),
    bad: s("path", { d: "M18 13L24.500 24.500H11.500z" }),
    off: s("path", { d: "M13 19H23" }),
  };
  return s("g", { class: "mark" }, forms[state]);
}

function spark(values, x, y) {
  const most = Math.max(...values, 0);
  if (values.length < 2 || most === 0) return null;
  const step = SPARK.width / (Math.max(values.length, 20) - 1);
  const start = x + SPARK.width - step * (values.length - 1);
  const points = values.map((value, i) => `${(start + i * step).toFixed(1)} ${(y + SPARK.height - (value / most) * SPARK.height).toFixed(1)}`);
  return s("path", { class: "spark", d: `M${points.join("L")}` });
}

function foldOf(node, box, colours) {
  return [
    chips(node.networks, colours),
    s("path", { class: "stack", d: `M4 ${box.height + 3}H${box.width - 4}M8 ${box.height + 6}H${box.width - 8}` }),
    nameOf(node.name, 12, box.width - (node.refusals > 0 ? 76 : 10)),
    node.lines.map((words, i) => s("text", { class: "health", x: 12, y: 43 + i * 18 }, words)),
    node.refusals > 0 && s("text", { class: "refusals", x: box.width - 10, y: 24 }, `${node.refusals} denied`),
  ];
}

function placeOf(node, box) {
  return [
    s("text", { class: "name", x: box.width / 2, y: box.height / 2 - 2 }, short(node.name, 17)),
    s("text", { class: "note", x: box.width / 2, y: box.height / 2 + 14 }, node.words),
  ];
}
