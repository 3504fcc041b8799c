// The page: what is seen comes in by `follow`, and everything is drawn again from it.

import { become } from "./dom.js";
import { layout } from "./layout.js";
import { follow } from "./link.js";
import { picture } from "./map.js";
import { mapOf, recent } from "./model.js";
import { details, figures, overview, tables } from "./tables.js";
import { unrecorded } from "./words.js";

const HISTORY = 60;
const SILENCE_MS = 15000;
const VERDICTS = ["drop", "audit", "pass"];
const LEAST_WIDTH = 300;
const LEAST_SCALE = 0.5; // a map that would be smaller is shown in part
const STACKED = 820; // as in style.css
const DRAGGED = 5; // pixels that make a press a drag

const $ = (id) => document.getElementById(id);
const page = {
  state: null,
  seenAt: null,
  cameAt: 0,
  selected: null,
  focused: null,
  unfolded: new Set(),
  history: new Map(),
  placed: null,
  topology: "",
  pairs: "",
  box: null, // what of the map is seen; null: everything
};

// --- drawing -------------------------------------------------------------------------------------

function draw() {
  const { state } = page;
  if (state === null) return;
  const wanted = $("find").value.trim().toLowerCase();
  const onlyDenied = $("denied").getAttribute("aria-pressed") === "true";
  const flows = recent(state.flows, Number($("period").value), onlyDenied);
  const map = mapOf(state, flows, { wanted, unfolded: page.unfolded });
  place(map);
  if (!map.nodes.some((node) => node.id === page.selected)) page.selected = null;
  if (!map.nodes.some((node) => node.id === page.focused)) page.focused = map.nodes[0]?.id ?? null;
  const named = (flow) => wanted === "" || flow.from.name.includes(wanted) || flow.to.name.includes(wanted);
  const listed = flows.filter(named).sort((a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict));
  const services = state.services.filter((service) => service.service.includes(wanted));
  document.title = `niso ${state.host}`;
  become($("host"), [document.createTextNode(`network of ${state.host}`)]);
  become($("figures"), figures(state, flows));
  const chosen = page.selected === null ? searchedFor(map, wanted) : new Set([page.selected]);
  const view = { selected: page.selected, chosen, focused: page.focused, history: page.history, choose };
  become($("picture"), picture(map, page.placed, view).filter(Boolean));
  look();
  become($("tables"), tables(state, listed, services, choose).flat().filter(Boolean));
  const node = map.nodes.find((one) => one.id === page.selected);
  become($("side"), (node ? details(state, flows, node, () => choose(null)) : overview(state, listed)).flat(9).filter(Boolean));
  page.map = map;
}

/** Return the nodes that are searched for, so that the others are dimmed; none if all are. */
function searchedFor(map, wanted) {
  return new Set(wanted === "" ? [] : map.nodes.filter((node) => node.name.includes(wanted)).map((node) => node.id));
}

/** Place the nodes. A node stays where it is until others come or go, or until it is asked for. */
function place(map, anyway = false) {
  const topology = JSON.stringify([map.nodes.map((node) => [node.id, node.networks]), map.networks]);
  const pairs = JSON.stringify([...new Set(map.edges.map((edge) => `${edge.from}|${edge.to}`))].sort());
  if (anyway || topology !== page.topology) {
    page.placed = layout(map, room());
    page.topology = topology;
    page.pairs = pairs;
    page.box = beginning();
  }
  $("arrange").classList.toggle("wanted", pairs !== page.pairs);
}

// --- what of the map is seen ---------------------------------------------------------------------

/** Return the size of what the map is shown in, as of the window if that is hidden. */
function room() {
  const { width, height } = $("picture").getBoundingClientRect();
  return width > 0 && height > 0 ? { width, height } : { width: innerWidth, height: innerHeight };
}

/** Return what is seen first: everything, or the beginning of what would be too small. */
function beginning() {
  const { width, height } = room();
  const { box } = page.placed;
  if (Math.min(width / box.width, height / box.height) >= LEAST_SCALE) return null;
  const seen = { width: Math.min(width / LEAST_SCALE / 1.2, box.width), height: Math.min(height / LEAST_SCALE / 1.2, box.height) };
  return { ...seen, x: box.x, y: box.y + (box.height - seen.height) / 2 };
}

function look() {
  const box = page.box ?? page.placed.box;
  $("picture").setAttribute("viewBox", [box.x, box.y, box.width, box.height].map((one) => one.toFixed(1)).join(" "));
}

function zoom(factor, at) {
  const box = page.box ?? page.placed.box;
  const width = Math.min(Math.max(box.width * factor, LEAST_WIDTH), page.placed.box.width * 2);
  const by = width / box.width;
  const x = at?.x ?? box.x + box.width / 2;
  const y = at?.y ?? box.y + box.height / 2;
  page.box = { x: x - (x - box.x) * by, y: y - (y - box.y) * by, width, height: box.height * by };
  look();
}

/** Return a place of the screen as one of the map. */
function onMap(event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform($("picture").getScreenCTM().inverse());
}

/** Move what is seen by pixels of the screen. */
function shift(dx, dy) {
  const box = page.box ?? page.placed.box;
  const scale = $("picture").getScreenCTM().a;
  page.box = { ...box, x: box.x - dx / scale, y: box.y - dy / scale };
  look();
}

/** Zoom by the wheel, move by one finger or the mouse, and zoom by two fingers. */
function pan() {
  const svg = $("picture");
  const grips = new Map(); // where each finger is
  let isDrag = false;
  const center = () => {
    const all = [...grips.values()];
    return { clientX: all.reduce((sum, one) => sum + one.clientX, 0) / all.length, clientY: all.reduce((sum, one) => sum + one.clientY, 0) / all.length };
  };
  const spread = () => {
    const [a, b] = [...grips.values()];
    return b === undefined ? 1 : Math.max(Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY), 1);
  };
  const at = ({ clientX, clientY }) => ({ clientX, clientY });
  svg.addEventListener("wheel", (event) => {
    if (page.placed === null) return;
    event.preventDefault();
    const pixels = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? event.deltaY * 20 : event.deltaY;
    zoom(1.0015 ** Math.max(-200, Math.min(200, pixels)), onMap(event));
  }, { passive: false });
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || page.placed === null) return;
    if (grips.size === 0) isDrag = false;
    grips.set(event.pointerId, at(event));
  });
  svg.addEventListener("pointermove", (event) => {
    const before = grips.get(event.pointerId);
    if (before === undefined) return;
    if (!isDrag && grips.size === 1 && Math.hypot(event.clientX - before.clientX, event.clientY - before.clientY) < DRAGGED) return;
    isDrag = true;
    svg.setPointerCapture(event.pointerId); // from here on, no node is clicked
    const [from, wide] = [center(), spread()];
    grips.set(event.pointerId, at(event));
    const to = center();
    if (grips.size > 1) zoom(wide / spread(), onMap(from));
    shift(to.clientX - from.clientX, to.clientY - from.clientY);
  });
  for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, (event) => grips.delete(event.pointerId));
}

// --- choosing ------------------------------------------------------------------------------------

/** Show the details of a node, unfold a box, or show everything again (null). */
function choose(id) {
  if (id?.startsWith("g ")) {
    page.unfolded.add(id);
  } else {
    const name = id?.startsWith("s ") ? id.slice(2) : null;
    page.selected = page.selected === id ? null : id;
    if (name !== null && page.map && !page.map.nodes.some((node) => node.id === id)) $("find").value = name;
  }
  if (id !== null) page.focused = id;
  draw();
  $("side").scrollTop = 0;
  // on a narrow window the details are below the map
  if (page.selected !== null && innerWidth <= STACKED) $("side").scrollIntoView();
}

/** Move to the next node in a direction: the nearest one, more straight than aside. */
function step(dx, dy) {
  const from = page.placed.at.get(page.focused);
  if (from === undefined) return;
  let best = null;
  for (const node of page.map.nodes) {
    const to = page.placed.at.get(node.id);
    const [x, y] = [to.x + to.width / 2 - from.x - from.width / 2, to.y + to.height / 2 - from.y - from.height / 2];
    const ahead = x * dx + y * dy;
    const aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (ahead <= 4) continue;
    const cost = ahead + 3 * aside;
    if (best === null || cost < best.cost) best = { id: node.id, cost };
  }
  if (best !== null) focusOn(best.id);
}

function focusOn(id) {
  page.focused = id;
  draw();
  const element = $("picture").querySelector(`[data-key="${CSS.escape(id)}"].node`);
  element?.focus();
  const to = page.placed.at.get(id);
  const { box } = page;
  if (box !== null && (to.x < box.x || to.y < box.y || to.x + to.width > box.x + box.width || to.y + to.height > box.y + box.height)) {
    page.box = { ...box, x: to.x + to.width / 2 - box.width / 2, y: to.y + to.height / 2 - box.height / 2 };
    look();
  }
}

function show(isTable) {
  $("map").hidden = isTable;
  $("tables").hidden = !isTable;
  $("show-map").setAttribute("aria-pressed", `${!isTable}`);
  $("show-table").setAttribute("aria-pressed", `${isTable}`);
  draw();
}

function toggleDenied() {
  const isOn = $("denied").getAttribute("aria-pressed") === "true";
  $("denied").setAttribute("aria-pressed", `${!isOn}`);
  draw();
}

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "/": () => $("find").focus(),
  d: toggleDenied,
  m: () => show(false),
  t: () => show(true),
  0: () => fit(),
  "+": () => zoom(0.8),
  "-": () => zoom(1.25),
  Escape: () => leave(),
};

function fit() {
  page.box = null;
  look();
}

function leave() {
  if (page.selected !== null) choose(null);
  else {
    $("find").value = "";
    page.unfolded.clear();
    draw();
  }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || page.state === null) return;
  const isTyping = event.target === $("find") || event.target === $("period");
  const node = event.target.closest?.(".node");
  if (node && event.key in ARROWS) {
    event.preventDefault();
    step(...ARROWS[event.key]);
  } else if (node && (event.key === "Enter" || event.key === " ")) {
    event.preventDefault();
    choose(node.dataset.key);
  } else if (event.key === "Escape" && isTyping) {
    $("find").value = "";
    $("find").blur();
    draw();
  } else if (event.key in KEYS && !isTyping) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

// --- states --------------------------------------------------------------------------------------

function say(words, kind) {
  $("live").className = kind;
  become($("live"), [document.createTextNode(words)]);
}

function notice(words) {
  $("notice").hidden = words === "";
  become($("notice"), words ? [document.createTextNode(words)] : []);
}

/** Say so if nothing has come for long: what looks may have been stopped. */
function watch() {
  if ($("live").className === "good" && Date.now() - page.cameAt > Math.max(SILENCE_MS, 3000 * page.state.seconds)) say(`as of ${clock()}`, "bad");
}

const clock = () => page.seenAt?.toLocaleTimeString() ?? "never";
const LOST = {
  refused: "This is not the address of the niso web that runs now. Open the one that it printed.",
  ended: "niso web has ended, or what it looks with was killed. Start it again and open the address that it prints.",
  lost: "niso web does not answer. Start it again and open the address that it prints.",
  busy: "Too many pages look at this niso web. Close one.",
};

follow({
  state(state) {
    const isFirst = page.state === null;
    page.state = state;
    page.seenAt = new Date(state.at);
    page.cameAt = Date.now();
    // the first look has no rates
    for (const one of state.seconds > 0 ? state.services : []) {
      const past = page.history.get(one.service) ?? [];
      past.push((one.received ?? 0) + (one.sent ?? 0));
      page.history.set(one.service, past.slice(-HISTORY));
    }
    for (const name of page.history.keys()) if (!state.services.some((one) => one.service === name)) page.history.delete(name);
    say("live", "good");
    notice(unrecorded(state));
    draw();
    if (isFirst) $("live").title = "A new look every two seconds";
  },
  failed(error) {
    say(`as of ${clock()}`, "bad");
    notice(`niso cannot look: ${error.error}`);
  },
  lost(why) {
    // "ended" stays, although what is asked after it does not answer either
    if (why === "lost" && $("notice").dataset.why === "ended") return;
    $("notice").dataset.why = why;
    say(page.state === null ? "not connected" : `as of ${clock()}`, "bad");
    notice(LOST[why]);
  },
});

$("find").addEventListener("input", draw);
$("period").addEventListener("change", draw);
$("denied").addEventListener("click", toggleDenied);
$("show-map").addEventListener("click", () => show(false));
$("show-table").addEventListener("click", () => show(true));
$("closer").addEventListener("click", () => zoom(0.8));
$("farther").addEventListener("click", () => zoom(1.25));
$("fit").addEventListener("click", fit);
$("arrange").addEventListener("click", () => {
  place(page.map, true);
  draw();
});
addEventListener("keydown", keys);
setInterval(watch, 1000);
pan();
