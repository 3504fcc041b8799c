// Draw a placed map as SVG.

import { s } from "./dom.js";
import { CROWDED } from "./layout.js";
import { bundled, condition, conditionWords, portsOf } from "./model.js";
import { bundleRoutes, routes } from "./routes.js";
import { count, perSecond, rate, short } from "./words.js";

const SHIELD = "M6 .500L11.500 2.600V6.200c0 3.300-2.400 5-5.500 6.100C2.900 11.200.500 9.500.500 6.200V2.600z";
const MOST_LABELS = 40;
const SPARK = { width: 36, height: 14 };
const COLOURS = 6;

/** Return the children of the picture.

    `view` has tied (the {nodes, edges} that are not dimmed, or null), lit (ids of nodes), selected (id
    or null), focused (id) and the handlers choose and point. Sets `map.bundles`. */
export function picture(map, placed, view) {
  const { tied } = view;
  const isCrowded = map.nodes.length > CROWDED;
  const groupOf = (id) => {
    if (id.startsWith("d ")) return "wall";
    const home = placed.home.get(id);
    return home === undefined ? id : `n ${home}`;
  };
  const groups = new Map([["wall", placed.wall], ...placed.frames.map((frame) => [`n ${frame.network}`, frame])]);
  const open = tied?.edges ?? new Set();
  const edges = isCrowded ? bundled(map.edges, groupOf, open) : map.edges;
  map.bundles = new Map(isCrowded ? bundled(map.edges, groupOf, new Set()).filter((one) => one.members).map((one) => [one.id, new Set(one.members.map((edge) => edge.id))]) : []);
  const lines = routes(edges.filter((edge) => !edge.members), placed.at, placed.reach);
  const bundles = edges.filter((edge) => edge.members);
  for (const [id, line] of bundleRoutes(bundles, (id) => groups.get(id) ?? placed.at.get(id))) lines.set(id, line);
  const colours = new Map([...placed.frames].map((frame) => frame.network).sort().map((name, i) => [name, i % COLOURS]));
  const touches = (edge) => tied === null || tied.edges.has(edge.id);
  const sorted = edges.filter((edge) => lines.has(edge.id)).sort((a, b) => loudness(a) - loudness(b));
  const labelled = sorted.filter((edge) => edge.flows.length > 0 && touches(edge)).slice(-MOST_LABELS).reverse();
  const boxes = map.nodes.filter((node) => tied === null || tied.nodes.has(node.id)).map((node) => placed.at.get(node.id));
  return [
    definitions(),
    map.nodes.length === 0 && s("text", { x: 0, y: 0, "text-anchor": "middle" }, "There are no services yet."),
    placed.wall && wall(placed.wall),
    // below the frames, so that they are seen between them only
    s("g", { class: "edges" }, sorted.filter((edge) => edge.members).map((edge) => edgeOf(edge, lines.get(edge.id), touches(edge), view))),
    s("g", { class: isCrowded ? "frames opaque" : "frames" }, placed.frames.map((frame) => frameOf(frame, colours.get(frame.network)))),
    s("g", { class: "edges" }, sorted.filter((edge) => !edge.members).map((edge) => edgeOf(edge, lines.get(edge.id), touches(edge), view))),
    s("g", { class: "titles" }, [placed.wall && wallTitle(placed.wall), placed.frames.map((frame) => titleOf(frame, colours.get(frame.network), placed.level))]),
    s("g", { class: `nodes ${placed.level}` }, map.nodes.map((node) => nodeOf(node, placed, colours, view, tied !== null && !tied.nodes.has(node.id)))),
    s("g", { class: "labels", "aria-hidden": "true" }, labelsOf(labelled, lines, boxes, placed)),
  ];
}

const loudness = (edge) => (edge.denied ? 1e9 : edge.audited ? 1e8 : 0) + edge.bits + edge.rate * 1000 + edge.open + edge.flows.length / 1000;

function definitions() {
  const arrow = (id) =>
    s("marker", { id, class: id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto-start-reverse" }, s("path", { d: "M0 .500L8 4 0 7.500z" }));
  return s("defs", {}, ["arrow", "arrow-live", "arrow-audit"].map(arrow));
}

function wall(box) {
  return s("g", { class: "wall" }, s("rect", { x: box.x, y: box.y, width: box.width, height: box.height, rx: 10 }));
}

function wallTitle(box) {
  return s(
    "g",
    { class: "wall" },
    s("text", { x: box.x + box.width / 2, y: box.y + 21, class: "title" }, "this host"),
    s("text", { x: box.x + box.width / 2, y: box.y + 37, class: "note" }, "published ports"),
  );
}

const notesOf = (frame) => [...frame.subnets, ...(frame.internal ? ["internal"] : [])].join("  ");

function frameOf(frame, colour) {
  return s(
    "g",
    { class: `frame c${colour}`, "data-key": frame.network },
    s("rect", { x: frame.x, y: frame.y, width: frame.width, height: frame.height, rx: 12 }),
    s("title", {}, `network ${frame.network} ${notesOf(frame)}`),
  );
}

function titleOf(frame, colour, level) {
  const most = Math.floor((frame.x + frame.width - frame.title - 12) / 8.6);
  const isLow = level === "tiny"; // one line
  return s(
    "g",
    { class: `frame c${colour}`, "data-key": frame.network },
    s("text", { x: frame.title, y: frame.y + (isLow ? 19 : 22), class: "title" }, short(frame.network, most)),
    !isLow && s("text", { x: frame.title, y: frame.y + 38, class: "note" }, short(notesOf(frame), Math.floor(most * 1.15))),
  );
}

/** Return the width of a line by its bits per second: 1.5 up to 4 kb/s, 4.7 at 100 Mb/s. */
const widthOf = (bits) => 1.5 + 0.7 * Math.min(5, Math.max(0, Math.log10(bits + 1) - 3.6));
const isLive = (edge) => edge.rate > 0 || edge.bits > 0;

function edgeOf(edge, line, touches, view) {
  const live = isLive(edge);
  const kind = edge.denied ? "drop" : edge.audited ? "audit" : live ? "live" : edge.flows.length === 0 ? "idle" : "";
  const width = edge.denied || edge.audited ? 1.6 : live ? widthOf(edge.bits || edge.rate * 3000) : 1.2;
  const arrow = edge.denied ? null : edge.audited ? "url(#arrow-audit)" : live ? "url(#arrow-live)" : "url(#arrow)";
  const id = edge.id;
  return s(
    "g",
    { class: `edge ${kind}${edge.members ? " bundle" : ""}${touches ? "" : " dim"}${view.selected === id ? " chosen" : ""}`, "data-key": id, onclick: () => view.choose(id) },
    s("path", { class: "hit", d: line.path }),
    s("path", { class: "line", d: line.path, "stroke-width": width.toFixed(1), "marker-end": arrow, "marker-start": edge.isMutual ? arrow : null }),
    edge.denied && stop(line),
  );
}

function stop({ end, side }) {
  const x = end.x + (side === "left" ? -8 : 8);
  return s("g", { class: "stop" }, s("circle", { cx: x, cy: end.y, r: 5.5 }), s("path", { d: `M${x - 3.5} ${end.y + 3.500}L${x + 3.5} ${end.y - 3.5}` }));
}

/** Return the words of a label, the longest first; shorter ones are used where there is no room. */
function wordsOf(edge) {
  if (edge.denied || edge.audited) return [`${portsOf(edge)} ${edge.denied ? "denied" : "audit"}`, portsOf(edge)];
  const more = (edge.bits > 0 && rate(edge.bits)) || perSecond(edge.rate) || (edge.open ? `${edge.open} open` : "");
  if (edge.flows.length > 1 && edge.members) return [`${count(edge.flows.length, "flow")} ${more}`.trim(), count(edge.flows.length, "flow")];
  // a door has the port in its box
  if (edge.to.startsWith("d ")) return [more];
  return [`${portsOf(edge)} ${more}`.trim(), portsOf(edge)];
}

const LABEL = { height: 15, pad: 4, step: 9, clear: 11 };
const GRID = 40;

/** Return the labels that have room, those of the loudest edges first.

    A label is on its line, in the half of the end that the port belongs to, or anywhere if the flow is
    denied. No other line crosses a label. */
function labelsOf(edges, lines, boxes, placed) {
  const taken = boxes.map((box) => ({ x: box.x, y: box.y, right: box.x + box.width, bottom: box.y + box.height }));
  for (const frame of placed.frames) taken.push({ x: frame.title, y: frame.y + 4, right: frame.title + Math.max(short(frame.network, 24).length * 9, placed.level === "tiny" ? 0 : notesOf(frame).length * 7), bottom: frame.y + (placed.level === "tiny" ? 24 : 42) });
  if (placed.wall) taken.push({ x: placed.wall.x, y: placed.wall.y, right: placed.wall.x + placed.wall.width, bottom: placed.wall.y + 42 });
  const grid = new Map();
  for (const [id, { points }] of lines) {
    for (const point of points) {
      const key = `${Math.floor(point.x / GRID)}|${Math.floor(point.y / GRID)}`;
      if (!grid.has(key)) grid.set(key, []);
      grid.get(key).push({ id, x: point.x, y: point.y });
    }
  }
  const isFree = (box, id) => {
    if (taken.some((other) => box.x < other.right && other.x < box.right && box.y < other.bottom && other.y < box.bottom)) return false;
    for (let x = Math.floor((box.x - 3) / GRID); x <= Math.floor((box.right + 3) / GRID); x++) {
      for (let y = Math.floor((box.y - 3) / GRID); y <= Math.floor((box.bottom + 3) / GRID); y++) {
        for (const point of grid.get(`${x}|${y}`) ?? []) {
          if (point.id !== id && box.x - 3 < point.x && point.x < box.right + 3 && box.y - 3 < point.y && point.y < box.bottom + 3) return false;
        }
      }
    }
    return true;
  };
  const shown = [];
  for (const edge of edges) {
    const { points, end } = lines.get(edge.id);
    search: for (const words of wordsOf(edge)) {
      if (words === "") continue;
      const width = widthOfText(words, edge.denied || edge.audited) + 2 * LABEL.pad;
      for (const aside of [0, -9, 9]) {
        for (let i = points.length - 1; i >= (edge.denied || edge.audited ? 0 : points.length / 2); i -= 2) {
          const at = points[i];
          const box = { x: at.x - width / 2, y: at.y + aside - LABEL.height / 2, right: at.x + width / 2, bottom: at.y + aside + LABEL.height / 2 };
          const clear = edge.denied ? LABEL.clear + 5 : LABEL.clear;
          if (box.x - clear < end.x && end.x < box.right + clear && box.y < end.y && end.y < box.bottom) continue; // covers the arrow
          if (!isFree(box, edge.id)) continue;
          taken.push(box);
          shown.push(labelOf(edge, box, words));
          break search;
        }
      }
    }
  }
  return shown;
}

function labelOf(edge, box, words) {
  return s(
    "g",
    { class: `label ${edge.denied ? "drop" : edge.audited ? "audit" : isLive(edge) ? "live" : ""}`, "data-key": edge.id },
    s("rect", { x: box.x, y: box.y, width: box.right - box.x, height: LABEL.height, rx: 4 }),
    s("text", { x: (box.x + box.right) / 2, y: box.bottom - 3.8, "text-anchor": "middle" }, words),
  );
}

function nodeOf(node, placed, colours, view, dim) {
  const box = placed.at.get(node.id);
  const shape = { service: serviceOf, fold: foldOf }[node.kind] ?? placeOf;
  const chosen = view.selected === node.id;
  const state = node.kind === "service" ? condition(node.service) : node.kind === "fold" && node.bad ? "bad" : "";
  return s(
    "g",
    {
      class: `node ${node.kind} ${state}${chosen ? " chosen" : ""}${dim ? " dim" : ""}${view.lit.has(node.id) ? " lit" : ""}`,
      "data-key": node.id,
      transform: `translate(${box.x.toFixed(1)} ${box.y.toFixed(1)})`,
      onclick: () => view.choose(node.id),
    },
    s("rect", {
      class: "box",
      width: box.width,
      height: box.height,
      rx: node.kind === "client" || node.kind === "server" ? box.height / 2 : 8,
      role: "button",
      tabindex: view.focused === node.id ? 0 : -1,
      "aria-label": spoken(node),
      "aria-pressed": `${chosen}`,
    }),
    // the label of the box says more, and names in full
    s("g", { class: "shape", "aria-hidden": "true" }, shape(node, box, colours, placed.level)),
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

function serviceOf(node, box, colours, level) {
  const { service } = node;
  const hasPolicy = service.policy !== null;
  const isLow = box.height < 40;
  const line = isLow ? box.height / 2 : 19; // the middle of the name's line
  const words = service.shares ? `in the network of ${short(service.shares, 8)}` : conditionWords(service);
  return [
    chips(node.networks, colours),
    s("g", { transform: `translate(${isLow ? -6 : 0} ${line - 19})` }, mark(condition(service))),
    nameOf(node.name, isLow ? 22 : 30, box.width - (hasPolicy ? 24 : 8), line + 5, isLow),
    hasPolicy && s("path", { class: `shield${service.audit_until ? " audit" : ""}`, transform: `translate(${box.width - 20} ${line - 7})`, d: SHIELD }),
    level === "full" && [s("text", { class: "health", x: 12, y: 42 }, words), service.received !== null && s("text", { class: "rates", x: 12, y: 60 }, `↓ ${rate(service.received)}  ↑ ${rate(service.sent)}`)],
    level === "medium" && s("text", { class: "health", x: 12, y: 38 }, service.received !== null && service.health !== "unhealthy" && service.status === "running" ? `↓ ${rate(service.received)} ↑ ${rate(service.sent)}` : words),
    level === "full" && spark(service.past ?? [], box.width - SPARK.width - 10, 30),
  ];
}

const SIZES = new Map([["", 15], ["smaller", 13.5], ["smallest", 12]]); // as in style.css
const widths = new Map();
let pen = null;

/** Return the width of some text; the text of a label is measured once. */
function measured(words, font) {
  const key = `${font} ${words}`;
  if (!widths.has(key)) {
    pen ??= { context: document.createElement("canvas").getContext("2d"), family: getComputedStyle(document.body).fontFamily };
    pen.context.font = `${font} ${pen.family}`;
    if (widths.size > 5000) widths.clear();
    widths.set(key, pen.context.measureText(words).width);
  }
  return widths.get(key);
}

const widthOfText = (words, isBold) => measured(words, `${isBold ? 600 : 400} 12px`);

/** Return a name between two places: smaller if it is long, and cut if that is not enough. */
function nameOf(name, x, right, y = 24, isLow = false) {
  const fits = (words, size) => measured(words, `600 ${size}px`) <= right - x;
  const [kind, size] = (isLow ? null : [...SIZES].find(([, one]) => fits(name, one))) ?? [...SIZES].at(-1);
  let most = name.length;
  while (most > 4 && !fits(short(name, most), size)) most--;
  return s("text", { class: `name ${kind}`, x, y }, short(name, most));
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

function foldOf(node, box, colours, level) {
  const isLow = box.height < 40;
  const denied = node.refusals > 0 ? (isLow ? `⊘ ${node.refusals}` : `${node.refusals} denied`) : "";
  const room = denied ? measured(denied, "600 12px") + 16 : 10;
  return [
    chips(node.networks, colours),
    s("path", { class: "stack", d: `M4 ${box.height + 3}H${box.width - 4}M8 ${box.height + 6}H${box.width - 8}` }),
    nameOf(isLow ? `${node.name} (${node.members.length})` : node.name, 12, box.width - room, isLow ? box.height / 2 + 5 : level === "medium" ? 20 : 24, isLow),
    !isLow && node.lines.slice(0, level === "medium" ? 1 : 2).map((words, i) => s("text", { class: "health", x: 12, y: (level === "medium" ? 38 : 42) + i * 18 }, level === "medium" ? node.lines.join(", ").replace(" services", "") : words)),
    denied && s("text", { class: "refusals", x: box.width - 10, y: isLow ? box.height / 2 + 4 : level === "medium" ? 20 : 24 }, denied),
  ];
}

function placeOf(node, box) {
  const isLow = box.height < 36;
  const size = isLow ? 12 : 13;
  let most = node.name.length;
  while (most > 4 && measured(short(node.name, most), `600 ${size}px`) > box.width - 10) most--;
  return [
    s("text", { class: "name", x: box.width / 2, y: box.height / 2 + (isLow ? 4.5 : -2) }, short(node.name, most)),
    !isLow && s("text", { class: "note", x: box.width / 2, y: box.height / 2 + 14 }, node.words),
  ];
}
