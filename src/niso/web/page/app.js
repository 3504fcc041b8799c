// The page: what is seen comes in by `follow`, and everything is drawn again from it.

import { become, h } from "./dom.js";
import { LEAST_SCALE, layout } from "./layout.js";
import { follow, token } from "./link.js";
import { picture } from "./map.js";
import { mapOf, recent, tiedTo } from "./model.js";
import { cardOf, details, edgeDetails, figures, overview, tables } from "./tables.js";
import { unrecorded } from "./words.js";

const SILENCE_MS = 15000;
const VERDICTS = ["drop", "audit", "pass"];
const LEAST_WIDTH = 300;
const STACKED = 820; // as in style.css
const DRAGGED = 5; // pixels that make a press a drag
const LAST_STATE = "niso-state"; // in the session storage of this tab
const THEMES = { "": "Theme: as the system", light: "Theme: light", dark: "Theme: dark" };

const $ = (id) => document.getElementById(id);
const page = {
  state: null,
  seenAt: null,
  cameAt: 0,
  selected: null, // a node, an edge or a bundle
  pointed: null,
  focused: null,
  unfolded: new Set(),
  placed: null,
  topology: "",
  pairs: "",
  box: null, // what of the map is seen; null: everything
  isDragged: false,
  theme: "",
  address: "",
};

// --- drawing -------------------------------------------------------------------------------------

const isDenied = () => $("denied").getAttribute("aria-pressed") === "true";
const wantedText = () => $("find").value.trim().toLowerCase();

function draw() {
  const { state } = page;
  keep();
  if (state === null) return;
  const wanted = wantedText();
  const all = recent(state.flows, Number($("period").value), false);
  const flows = isDenied() ? all.filter((flow) => flow.verdict !== "pass") : all;
  const map = mapOf(state, flows, { wanted, unfolded: page.unfolded });
  const name = page.selected?.startsWith("s ") ? page.selected.slice(2) : null;
  if (name !== null && !map.byId.has(page.selected) && wanted !== name && state.services.some((service) => service.service === name)) {
    $("find").value = name; // out of its folded box
    return draw();
  }
  place(map);
  page.map = map;
  if (!map.nodes.some((node) => node.id === page.focused)) page.focused = map.nodes[0]?.id ?? null;
  const named = (flow) => wanted === "" || flow.from.name.includes(wanted) || flow.to.name.includes(wanted);
  const listed = flows.filter(named).sort((a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict));
  const services = state.services.filter((service) => service.service.includes(wanted));
  document.title = `niso ${state.host}`;
  become($("host"), [document.createTextNode(`network of ${state.host}`)]);
  become($("figures"), figures(state, all));
  drawMap();
  if (!map.byId.has(page.selected) && edgesOf(page.selected).length === 0) page.selected = null;
  filters(wanted, services.length, listed.length, all.length);
  page.listed = { flows: listed, services };
  if (!$("tables").hidden) drawTables();
  const node = map.byId.get(page.selected);
  const edges = edgesOf(page.selected);
  const leave = () => choose(null);
  const shown = node ? details(state, flows, node, leave) : edges.length > 0 ? edgeDetails(state, edges, leave) : overview(state, listed);
  become($("side"), shown.flat(9).filter(Boolean));
}

function drawTables() {
  if (page.state !== null) become($("tables"), tables(page.state, page.listed.flows, page.listed.services, choose).flat().filter(Boolean));
}

/** Draw the map alone: what is tied to what is pointed at, selected or searched for stays bright. */
function drawMap() {
  const { map } = page;
  const lit = new Set(wantedText() === "" ? [] : map.nodes.filter((node) => node.name.includes(wantedText())).map((node) => node.id));
  const isThere = (id) => id !== null && (map.byId.has(id) || edgesOf(id).length > 0);
  const chosen = [page.pointed, page.selected].find(isThere);
  const ids = chosen === undefined ? lit : new Set([chosen]);
  const tied = ids.size > 0 ? tiedTo(map, ids) : null;
  const view = { selected: page.selected, tied, lit, focused: page.focused, choose };
  become($("picture"), picture(map, page.placed, view).filter(Boolean));
  look();
}

/** Return the edges of an edge's or a bundle's id. */
function edgesOf(id) {
  return (page.map?.edges ?? []).filter((edge) => edge.id === id || page.map.bundles.get(id)?.has(edge.id));
}

/** Say what is left out of the page: by the search and by the button. */
function filters(wanted, services, flows, all) {
  const words = [
    wanted !== "" && (services > 0 ? `${services === 1 ? "1 service matches" : `${services} services match`} “${wanted}”` : `no service matches “${wanted}”`),
    isDenied() && "only denied flows and those in audit",
    (wanted !== "" || isDenied()) && `${flows} of ${all} flows shown`,
  ].filter(Boolean);
  $("filters").classList.toggle("on", words.length > 0);
  become($("filters"), words.length > 0 ? [h("span", {}, words.join(" · ")), h("button", { type: "button", onclick: clear }, "Show all")] : []);
}

function clear() {
  $("find").value = "";
  $("denied").setAttribute("aria-pressed", "false");
  draw();
}

/** Place the nodes. A node stays where it is until others come or go, or until it is asked for. */
function place(map, anyway = false) {
  const topology = JSON.stringify([map.nodes.map((node) => [node.id, node.networks]), map.networks]);
  const pairs = JSON.stringify([...new Set(map.edges.map((edge) => `${edge.from}|${edge.to}`))].sort());
  if (anyway || topology !== page.topology) {
    page.shape = room();
    page.placed = layout(map, page.shape);
    page.topology = topology;
    page.pairs = pairs;
    page.box = beginning();
    $("skeleton").toggleAttribute("hidden", true);
  }
  $("arrange").classList.toggle("wanted", pairs !== page.pairs);
}

// --- what of the map is seen ---------------------------------------------------------------------

/** Return the size of what the map is shown in, as of the window if that is hidden. */
function room() {
  const { width, height } = $("picture").getBoundingClientRect();
  return width > 0 && height > 0 ? { width, height } : { width: innerWidth, height: innerHeight };
}

/** Return what is seen first: everything, or the part where the networks begin if it would be too small. */
function beginning() {
  const { width, height } = room();
  const { box, frames } = page.placed;
  if (Math.min(width / box.width, height / box.height) >= LEAST_SCALE) return null;
  const seen = { width: Math.min(width, box.width), height: Math.min(height, box.height) };
  // on a phone, the wall and other machines would be all that is seen
  const first = Math.min(box.x + box.width, ...frames.map((frame) => frame.x)) - 12;
  const x = first - box.x > seen.width * 0.4 ? page.placed.inner.x : box.x;
  return { ...seen, x: Math.min(x, box.x + box.width - seen.width), y: box.y };
}

function look() {
  const box = page.box ?? page.placed.box;
  const { width, height } = room();
  // text that would be too small to read is left out: see style.css
  const scale = Math.min(width / box.width, height / box.height);
  $("picture").classList.toggle("far", scale < LEAST_SCALE - 0.01);
  $("picture").classList.toggle("farther", scale < 0.35);
  $("picture").style.setProperty("--far", `${12 / scale}px`);
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

/** Move the picture as it is by pixels of the screen: while it is dragged, it is not drawn again. A transform of the picture itself would lay out its text in each frame. */
const slide = (dx, dy) => $("sheet").style.setProperty("transform", dx || dy ? `translate(${dx}px, ${dy}px)` : "");

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
  const slid = { x: 0, y: 0 };
  const drop = () => {
    if (slid.x === 0 && slid.y === 0) return;
    slide(0, 0);
    shift(slid.x, slid.y);
    [slid.x, slid.y] = [0, 0];
    [page.isDragged, page.pointed] = [false, null];
    draw(); // also what came meanwhile
  };
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
    if (grips.size > 1) {
      drop();
      zoom(wide / spread(), onMap(from));
      shift(to.clientX - from.clientX, to.clientY - from.clientY);
      return;
    }
    slid.x += to.clientX - from.clientX;
    slid.y += to.clientY - from.clientY;
    $("card").hidden = true;
    page.isDragged = true;
    slide(slid.x, slid.y);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, (event) => {
      grips.delete(event.pointerId);
      drop();
    });
  }
  // a click, or the keyboard's focus, is what a finger has
  svg.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch" || grips.size > 0) return;
    point(event.target.closest(".node, .edge, .label")?.dataset.key ?? null, event);
  });
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("focusin", (event) => event.target.matches(":focus-visible") && point(event.target.closest(".node")?.dataset.key ?? null));
  svg.addEventListener("focusout", () => point(null));
}

// --- pointing and choosing -----------------------------------------------------------------------

/** Dim all that is not tied to a node or a line, and show its card; null ends both. */
function point(id, event) {
  if (id === page.pointed || page.map === undefined) return;
  page.pointed = id;
  drawMap();
  card(event);
}

function card(event) {
  const node = page.map.byId.get(page.pointed);
  const edges = edgesOf(page.pointed);
  const isShown = page.pointed !== null && page.pointed !== page.selected && (node !== undefined || edges.length > 0);
  $("card").hidden = !isShown;
  if (!isShown) return;
  become($("card"), cardOf(page.state, node, edges, page.map).flat(9).filter(Boolean));
  const map = $("map").getBoundingClientRect();
  const own = $("card").getBoundingClientRect();
  const at = node ? $("picture").querySelector(`.node[data-key="${CSS.escape(node.id)}"] .box`).getBoundingClientRect() : new DOMRect(event?.clientX ?? map.x, event?.clientY ?? map.y, 0, 0);
  const right = at.right + 14;
  const x = right + own.width < map.right ? right : at.left - own.width - 14;
  const y = Math.min(at.top, map.bottom - own.height - 8);
  $("card").style.setProperty("left", `${Math.max(8, x - map.x)}px`);
  $("card").style.setProperty("top", `${Math.max(8, y - map.y)}px`);
}

/** Show the details of a node or a line, unfold a box, or show everything again (null). */
function choose(id) {
  if (id?.startsWith("g ")) {
    page.unfolded.add(id);
  } else {
    const name = id?.startsWith("s ") ? id.slice(2) : null;
    page.selected = page.selected === id ? null : id;
    }
  if (page.map?.byId.has(id)) page.focused = id;
  $("card").hidden = true;
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
  const element = $("picture").querySelector(`[data-key="${CSS.escape(id)}"].node .box`);
  element?.focus();
  const to = page.placed.at.get(id);
  const { box } = page;
  if (box !== null && (to.x < box.x || to.y < box.y || to.x + to.width > box.x + box.width || to.y + to.height > box.y + box.height)) {
    page.box = { ...box, x: to.x + to.width / 2 - box.width / 2, y: to.y + to.height / 2 - box.height / 2 };
    look();
  }
}

function setView(isTable) {
  $("map").hidden = isTable;
  $("tables").hidden = !isTable;
  $("show-map").setAttribute("aria-pressed", `${!isTable}`);
  $("show-table").setAttribute("aria-pressed", `${isTable}`);
}

function show(isTable) {
  setView(isTable);
  draw();
}

function toggleDenied() {
  $("denied").setAttribute("aria-pressed", `${!isDenied()}`);
  draw();
}

/** Show the first service that is searched for, whether its box was folded or not. */
function findFirst() {
  const wanted = wantedText();
  const names = (page.state?.services ?? []).map((service) => service.service).filter((name) => name.includes(wanted));
  const first = names.find((name) => name === wanted) ?? names.find((name) => name.startsWith(wanted)) ?? names[0];
  if (wanted === "" || first === undefined) return;
  page.selected = null;
  choose(`s ${first}`);
  focusOn(`s ${first}`);
}

// --- the address of the page ---------------------------------------------------------------------

/** Put what is chosen into the fragment of the address, so that a reload or a bookmark shows the same. */
function keep() {
  const given = new URLSearchParams();
  const add = (key, value, usual) => value !== usual && given.set(key, value);
  add("show", page.selected ?? "", "");
  add("find", $("find").value, "");
  add("only", isDenied() ? "denied" : "", "");
  add("period", $("period").value, "3600");
  add("view", $("tables").hidden ? "map" : "table", "map");
  add("theme", page.theme, "");
  const text = given.size > 0 ? `#${given}` : "";
  if (text === page.address) return;
  page.address = text;
  history.replaceState(null, "", location.pathname + text);
}

function restore() {
  const given = new URLSearchParams(location.hash.slice(1));
  page.selected = given.get("show");
  $("find").value = given.get("find") ?? "";
  $("denied").setAttribute("aria-pressed", `${given.get("only") === "denied"}`);
  const period = given.get("period") ?? "3600";
  $("period").value = [...$("period").options].some((one) => one.value === period) ? period : "3600";
  page.theme = given.get("theme") in THEMES ? given.get("theme") : "";
  page.address = location.hash;
  setTheme();
  setView(given.get("view") === "table");
}

function setTheme() {
  if (page.theme === "") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = page.theme;
  $("theme").setAttribute("aria-label", THEMES[page.theme]);
  $("theme").title = THEMES[page.theme];
}

function nextTheme() {
  const all = Object.keys(THEMES);
  page.theme = all[(all.indexOf(page.theme) + 1) % all.length];
  setTheme();
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
  if (page.pointed !== null) point(null);
  if (page.selected !== null) choose(null);
  else {
    page.unfolded.clear();
    clear();
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
  } else if (event.key === "Enter" && event.target === $("find")) {
    findFirst();
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

token();
restore();
const last = sessionStorage.getItem(LAST_STATE);
if (last !== null) {
  // shown until the first look comes
  page.state = JSON.parse(last);
  page.seenAt = new Date(page.state.at);
  document.body.classList.add("old");
  draw();
}

follow({
  state(state) {
    page.state = state;
    page.seenAt = new Date(state.at);
    page.cameAt = Date.now();
    document.body.classList.remove("old");
    try {
      sessionStorage.setItem(LAST_STATE, JSON.stringify(state));
    } catch {
      sessionStorage.removeItem(LAST_STATE); // too large: a reload begins without
    }
    say("live", "good");
    notice(unrecorded(state));
    if (!page.isDragged) draw();
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

addEventListener("hashchange", () => {
  token();
  restore();
  draw();
});
$("find").addEventListener("input", draw);
$("theme").addEventListener("click", nextTheme);
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
addEventListener("beforeprint", drawTables);
matchMedia("print").addEventListener("change", drawTables);
pan();
// another size of the window needs another layout
new ResizeObserver(() => {
  const { width, height } = room();
  const { shape } = page;
  if (page.map === undefined || $("map").hidden || (Math.abs(width - shape.width) < 40 && Math.abs(height - shape.height) < 40)) return;
  place(page.map, true);
  draw();
}).observe($("stage"));
