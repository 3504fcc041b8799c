// Place nodes: the host's wall with its doors at the left, networks as frames, other machines at
// both sides. Pure, and the same for the same input.
//
// A network is a frame. Two networks with common services are next to each other, and their frames
// overlap where these services are. A service on more networks than that is drawn in two of them at
// most. On a crowded map no frames overlap: each service is drawn in one frame.
//
// Text must be readable. If a map with full boxes would be shown too small, the boxes get smaller
// and say less, but their text keeps its size. Of several layouts of such boxes, with different
// numbers of columns and rows of networks, the one is used that is shown largest.

// what boxes of each size show is in map.js
const LEVELS = [
  { name: "full", node: { width: 158, height: 70 }, gap: { x: 104, y: 26 }, outer: { width: 126, height: 42 }, pad: { x: 18, top: 54, bottom: 20 }, step: 16, reach: 70 },
  { name: "medium", node: { width: 146, height: 46 }, gap: { x: 92, y: 20 }, outer: { width: 122, height: 40 }, pad: { x: 16, top: 52, bottom: 16 }, step: 14, reach: 60 },
  { name: "small", node: { width: 136, height: 28 }, gap: { x: 76, y: 16 }, outer: { width: 108, height: 26 }, pad: { x: 14, top: 48, bottom: 14 }, step: 9, reach: 50 },
  { name: "tiny", node: { width: 108, height: 24 }, gap: { x: 36, y: 4 }, outer: { width: 104, height: 24 }, pad: { x: 10, top: 27, bottom: 8 }, step: 6, reach: 24 },
];
/** At this scale the smallest text of the map, 12 px, is shown with 11 px. */
export const LEAST_SCALE = 0.925;
/** Maps with more boxes show flows between two networks as one line. */
export const CROWDED = 40;
const MOST_TRIED = 90; // with more boxes, fewer layouts are tried
const WALL_TITLE = 50;
const MARGIN = 12;
const TOP = 30;
const LEAST = { width: 620, height: 340 };
const SHIFT = 14;
const SWEEPS = 6;
const FEWER = [0, 1, 2, 4, 8];
const WIDTHS = [0, 0.55, 0.75, 1]; // of a row of networks, in proportion to the room for them; 0: no rows
const NARROW = 600; // a phone: the networks are as wide as the window, and the rest is moved to
const GAIN = 1.05; // a readable map has columns that follow the flows, unless others are shown so much larger

/** Return {at, frames, wall, box, level, home}; `at` has x, y, width, height by the id of a node.

    `shape` is the {width, height} of what the map is shown in. `level` names the size of the boxes, `reach` is how far a line may go beside them,
    and `home` has the network in whose frame a node is. */
export function layout(map, shape = LEAST) {
  const isCrowded = map.nodes.length > CROWDED;
  const isNarrow = shape.width < NARROW;
  const links = linksOf(map.edges);
  const services = map.nodes.filter((node) => node.kind === "service" || node.kind === "fold");
  const rows = (isCrowded || isNarrow ? [1] : [9, 2, 1]).map((longest) => components(services, map.networks, links.beside, longest));
  let last = null;
  for (const level of isCrowded ? LEVELS.slice(1) : LEVELS) {
    const area = map.nodes.length * (level.node.width + level.gap.x / 2) * (level.node.height + level.gap.y / 2);
    const fits = area * LEAST_SCALE ** 2 < shape.width * shape.height;
    if (!fits && level !== LEVELS.at(-1) && level !== LEVELS.at(-2)) continue; // not worth trying
    const best = bestOf(tried(map, rows, links, shape, level), shape, isNarrow);
    if (best.scale >= LEAST_SCALE) return best;
    // shown in part: the largest boxes that were tried say most
    if (last === null || best.scale > last.scale * 1.5) last = best;
  }
  return last;
}

/** Yield layouts with boxes of a level, those that follow the flows most first. */
function* tried(map, rows, links, shape, level) {
  for (const fewer of map.nodes.length > MOST_TRIED ? [0, 4] : FEWER) {
    for (const found of rows) {
      const parts = found.map((component) => {
        const own = { at: new Map(), frames: [] };
        return { ...own, size: placeComponent(component, links, own.at, own.frames, fewer, level) };
      });
      for (const width of WIDTHS) yield placed(map, parts, links, width, shape, level);
    }
  }
}

function bestOf(layouts, shape, isNarrow) {
  let best = null;
  for (const made of layouts) {
    const { x, right } = isNarrow && made.frames.length > 0 ? made.inner : { x: made.box.x, right: made.box.x + made.box.width };
    const scale = Math.min(shape.width / (right - x), (shape.height * (isNarrow ? 3 : 1)) / made.box.height, 1);
    if (best === null || scale > best.scale * (best.scale < LEAST_SCALE ? 1 : GAIN)) best = { ...made, scale };
    if (best.scale * GAIN >= 1) break; // none is shown so much larger
  }
  return best;
}

/** Return a map with `parts`, networks that are placed in themselves, in rows of this share of `shape`. */
function placed({ nodes }, parts, links, width, shape, level) {
  const inner = nodes.filter((node) => node.kind === "service" || node.kind === "fold");
  const doors = nodes.filter((node) => node.kind === "door");
  const clients = nodes.filter((node) => node.kind === "client" || node.kind === "host");
  const { beside } = links;
  const at = new Map();
  const frames = [];
  const { outer, gap } = level;
  const between = Math.max(14, gap.x * 0.4);
  const servers = nodes.filter((node) => node.kind === "server");
  // as many columns of doors and of other machines as are needed to be no higher than the window
  const columnsFor = (list) => Math.max(1, Math.ceil((list.length * (outer.height + level.step) + WALL_TITLE) / (shape.height / LEAST_SCALE)));
  const wide = (list) => columnsFor(list) * (outer.width + 14) - 14;
  const left = clients.length > 0 ? MARGIN + wide(clients) + gap.x * 0.55 + 10 : 36;
  const start = doors.length > 0 ? left + wide(doors) + 10 + gap.x * 0.5 : left;
  const end = servers.length > 0 ? gap.x * 0.7 + wide(servers) : 0;
  const beyond = shape.width < NARROW ? 0 : start + end;
  const { right, bottom } = shelve(parts, start, width * (shape.width / LEAST_SCALE - beyond - 2 * MARGIN), between);
  for (const part of parts) {
    for (const [id, box] of part.at) at.set(id, { ...box, x: box.x + part.x, y: box.y + part.y });
    for (const frame of part.frames) frames.push({ ...frame, x: frame.x + part.x, y: frame.y + part.y, title: frame.title + part.x });
  }
  const wanted = (node) => mean((beside.get(node.id) ?? []).filter((id) => at.has(id)).map((id) => middle(at.get(id))));
  const column = (list, x) => {
    const many = columnsFor(list);
    const step = (outer.height + level.step) / many;
    const sorted = list.map((node) => ({ node, y: wanted(node) ?? bottom / 2 })).sort((a, b) => a.y - b.y || compare(a.node.id, b.node.id));
    const ys = spread(sorted.map((one) => one.y), Math.max(step, many > 1 ? (outer.height + 6) / many : step));
    // not above the networks, and the wall has a title
    const down = Math.max(0, TOP + (list === doors ? WALL_TITLE : 0) - ((ys[0] ?? 0) - outer.height / 2));
    ys.forEach((y, i) => (ys[i] = y + down));
    sorted.forEach(({ node }, i) => at.set(node.id, { x: x + (i % many) * (outer.width + 14), y: ys[i] - outer.height / 2, ...outer }));
  };
  column(doors, left);
  column(clients, MARGIN);
  column(servers, right + gap.x * 0.7);
  const wall = doors.length > 0 ? wallOf(doors.map((node) => at.get(node.id)), frames, left, wide(doors)) : null;
  const home = new Map(inner.map((node) => [node.id, frames.find((frame) => inside(at.get(node.id), frame))?.network]));
  const boxes = [...at.values(), ...frames];
  return { at, frames, wall, home, level: level.name, reach: level.reach, inner: { x: start - MARGIN, right: right + MARGIN }, box: around(wall ? [...boxes, wall] : boxes) };
}

const inside = (box, frame) => frame.x <= box.x && box.x + box.width <= frame.x + frame.width && frame.y <= box.y && box.y + box.height <= frame.y + frame.height;

/** Return the wall that has the doors: beside the networks that they lead to, or all of it. */
function wallOf(doors, frames, left, width) {
  const top = Math.min(...doors.map((box) => box.y)) - WALL_TITLE;
  const low = Math.max(...doors.map((box) => box.y + box.height)) + 16;
  const near = frames.filter((frame) => frame.y < low && frame.y + frame.height > top);
  const y = Math.min(top, ...near.map((frame) => frame.y));
  return { x: left - 10, y, width: width + 20, height: Math.max(low, ...near.map((frame) => frame.y + frame.height)) - y };
}

/** Set x and y of parts: each as high as there is room in some width; return the corner. */
function shelve(parts, start, width, between) {
  const most = Math.max(width, ...parts.map((part) => part.size.width));
  const done = [];
  for (const part of parts) {
    part.y = Infinity;
    for (const x of [start, ...done.map((other) => other.x + other.size.width + between)].sort((a, b) => a - b)) {
      if (x + part.size.width > start + most + 0.5) continue;
      const above = done.filter((other) => other.x < x + part.size.width + between && x < other.x + other.size.width + between);
      const y = Math.max(TOP, ...above.map((other) => other.y + other.size.height + between));
      if (y < part.y) [part.x, part.y] = [x, y];
    }
    done.push(part);
  }
  const right = Math.max(start, ...parts.map((part) => part.x + part.size.width));
  return { right, bottom: Math.max(200, ...parts.map((part) => part.y + part.size.height)) };
}

/** Return a box around boxes, with a margin; few are not shown larger than this. */
function around(boxes) {
  const x = Math.min(...boxes.map((box) => box.x)) - MARGIN;
  const y = Math.min(...boxes.map((box) => box.y)) - MARGIN;
  const width = Math.max(...boxes.map((box) => box.x + box.width)) + MARGIN - x;
  const height = Math.max(...boxes.map((box) => box.y + box.height)) + MARGIN - y;
  if (boxes.length === 0) return { x: -LEAST.width / 2, y: -LEAST.height / 2, ...LEAST };
  const [wide, high] = [Math.max(width, LEAST.width), Math.max(height, LEAST.height)];
  return { x: x - (wide - width) / 2, y: y - (high - height) / 2, width: wide, height: high };
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
const middle = (box) => box.y + box.height / 2;
const mean = (values) => (values.length ? values.reduce((a, b) => a + b, 0) / values.length : undefined);

/** Return who is joined with whom: `out` by the direction of flows, `beside` by both. */
function linksOf(edges) {
  const [out, beside] = [new Map(), new Map()];
  const add = (map, from, to) => map.set(from, [...(map.get(from) ?? []), to]);
  for (const { from, to } of edges) {
    add(out, from, to);
    add(beside, from, to);
    add(beside, to, from);
  }
  return { out, beside };
}

/** Return the networks that share services, each with its cells in the order from left to right. */
function components(nodes, networks, beside, longest) {
  const shared = new Map(); // two names -> how many services are on both
  for (const node of nodes) {
    node.networks.forEach((a, i) =>
      node.networks.slice(i + 1).forEach((b) => {
        const pair = [a, b].sort().join("\0");
        shared.set(pair, (shared.get(pair) ?? 0) + 1);
      }),
    );
  }
  // the pairs with most services become neighbours: a path, without branches and circles
  const links = new Map();
  const root = new Map();
  const find = (name) => (root.has(name) ? find(root.get(name)) : name);
  const length = new Map();
  const lengthOf = (name) => length.get(find(name)) ?? 1;
  for (const [pair] of [...shared].sort((a, b) => b[1] - a[1] || compare(a[0], b[0]))) {
    const [a, b] = pair.split("\0");
    if ((links.get(a) ?? []).length > 1 || (links.get(b) ?? []).length > 1 || find(a) === find(b) || lengthOf(a) + lengthOf(b) > longest) continue;
    links.set(a, [...(links.get(a) ?? []), b]);
    links.set(b, [...(links.get(b) ?? []), a]);
    const joined = lengthOf(a) + lengthOf(b);
    root.set(find(a), find(b));
    length.set(find(b), joined);
  }
  const names = [...new Set([...networks.map((network) => network.network), ...nodes.flatMap((node) => node.networks)])].sort();
  const publishes = (name) => nodes.filter((node) => node.networks.includes(name) && (beside.get(node.id) ?? []).some((id) => id.startsWith("d "))).length;
  const done = new Set();
  const result = [];
  for (const name of names) {
    if (done.has(name)) continue;
    const path = pathFrom(endOf(name, links), links);
    path.forEach((one) => done.add(one));
    if (publishes(path[0]) < publishes(path.at(-1))) path.reverse();
    result.push({ path, cells: cellsOf(path, nodes), subnets: networks.filter((network) => path.includes(network.network)) });
  }
  const alone = nodes.filter((node) => node.networks.length === 0);
  const weight = ({ path, cells }) => path.reduce((sum, name) => sum + publishes(name), 0) * 1000 + cells.flatMap((cell) => cell.nodes).length;
  result.sort((a, b) => weight(b) - weight(a) || compare(a.path[0], b.path[0]));
  if (alone.length) result.push({ path: [], cells: [{ on: [], nodes: alone }], subnets: [] });
  return result;
}

function endOf(name, links) {
  let before;
  let here = name;
  while ((links.get(here) ?? []).length > 1) {
    const next = links.get(here).find((one) => one !== before);
    before = here;
    here = next;
  }
  return here;
}

function pathFrom(name, links) {
  const path = [name];
  for (;;) {
    const next = (links.get(path.at(-1)) ?? []).find((one) => !path.includes(one));
    if (next === undefined) return path;
    path.push(next);
  }
}

/** Return the cells of a path of networks: those of one network, and of two that are neighbours. */
function cellsOf(path, nodes) {
  const cells = path.flatMap((name, i) => [
    { on: [name], nodes: [] },
    ...(i + 1 < path.length ? [{ on: [name, path[i + 1]], nodes: [] }] : []),
  ]);
  for (const node of nodes) {
    const home = cells.find((cell) => cell.on.length > 1 && cell.on.every((name) => node.networks.includes(name)));
    const first = cells.find((cell) => cell.on.length === 1 && cell.on[0] === node.networks[0]);
    (home ?? first)?.nodes.push(node);
  }
  return cells.filter((cell) => cell.nodes.length > 0 || cell.on.length === 1);
}

/** Place the nodes of some networks and their frames, from 0, 0 on; return the size. */
function placeComponent({ path, cells, subnets }, links, at, frames, fewer, { node: NODE, gap: GAP, pad: PADDING }) {
  const total = cells.reduce((sum, cell) => sum + cell.nodes.length, 0);
  const most = Math.max(4, Math.min(14, Math.ceil(Math.sqrt(total * 1.4)))) + fewer;
  const columns = cells.flatMap((cell) => columnsOf(cell, links, most, fewer, cells.length === 1, NODE.height < 25 || fewer > 1).map((nodes) => ({ cell, nodes })));
  order(columns, links.beside);
  vertical(columns, links.beside, NODE.height + GAP.y);
  let x = PADDING.x;
  columns.forEach((column, i) => {
    if (i > 0) x += NODE.width + GAP.x + (columns[i - 1].cell === column.cell ? 0 : PADDING.x);
    column.x = x;
  });
  const overlap = path.length > 1 ? SHIFT : 0;
  const low = PADDING.top + overlap;
  const ys = columns.flatMap((column) => column.ys);
  const top = ys.length ? Math.min(...ys) : 0;
  const high = low + NODE.height + (ys.length ? Math.max(...ys) - top : 0);
  for (const column of columns) {
    column.nodes.forEach((node, i) => at.set(node.id, { x: column.x, y: low + column.ys[i] - top, ...NODE }));
  }
  path.forEach((name, i) => {
    const own = columns.filter((column) => column.cell.on.includes(name));
    const from = Math.min(...own.map((column) => column.x)) - PADDING.x;
    const to = Math.max(...own.map((column) => column.x)) + NODE.width + PADDING.x;
    const network = subnets.find((one) => one.network === name);
    frames.push({
      network: name,
      subnets: network?.subnets ?? [],
      internal: network?.internal ?? false,
      title: own.find((column) => column.cell.on.length === 1).x - PADDING.x + 16,
      x: from,
      y: low - PADDING.top - (i % 2 ? overlap : 0), // so that the lines of two frames can be told apart
      width: to - from,
      height: high - low + PADDING.top + PADDING.bottom,
    });
  });
  return { width: columns.at(-1).x + NODE.width + PADDING.x, height: high + PADDING.bottom };
}

/** Return the columns of a cell: along the flows between its nodes, the idle ones in the shortest. */
function columnsOf(cell, { beside, out }, most, fewer, isOnly, isTight) {
  const own = new Map(cell.nodes.map((node) => [node.id, node]));
  if (own.size === 0) return [[]];
  const inside = (node) => (out.get(node.id) ?? []).filter((id) => own.has(id));
  const rank = new Map();
  const visiting = new Set();
  const depth = (node) => {
    if (rank.has(node.id)) return rank.get(node.id);
    visiting.add(node.id);
    let least = 0;
    for (const id of inside(node)) if (!visiting.has(id)) least = Math.max(least, depth(own.get(id)) + 1);
    visiting.delete(node.id);
    rank.set(node.id, least);
    return least;
  };
  const sorted = [...cell.nodes].sort((a, b) => compare(a.id, b.id));
  sorted.forEach(depth);
  // no more columns than make a square, or a map would be all width
  const longest = Math.max(...rank.values());
  const square = Math.max(1, Math.round(Math.sqrt(own.size)) - fewer) - (isOnly ? 0 : 1);
  const deepest = Math.min(longest, Math.max(square, Math.ceil(own.size / most) - 1));
  for (const [id, value] of rank) rank.set(id, longest ? Math.round((value * deepest) / longest) : 0);
  const columns = Array.from({ length: deepest + 1 }, () => []);
  const idle = [];
  for (const node of sorted) {
    const alone = !(beside.get(node.id) ?? []).some((id) => own.has(id));
    if (alone && deepest > 0) idle.push(node);
    else columns[deepest - rank.get(node.id)].push(node);
  }
  if (isTight) {
    // columns of one length need fewest rows
    for (;;) {
      const [low, high] = columns.reduce(([a, b], one) => [one.length < a.length ? one : a, one.length > b.length ? one : b], [columns[0], columns[0]]);
      if (high.length - low.length - idle.length < 2) break;
      low.push(high.pop());
    }
  }
  for (const node of idle) columns.reduce((a, b) => (b.length < a.length ? b : a)).push(node);
  return columns.flatMap((column) => {
    // services without flows between them may be side by side
    const parts = Math.max(Math.ceil(column.length / most), deepest === 0 && isOnly && fewer < 3 && column.length > 1 ? 2 : 1);
    const size = Math.ceil(column.length / parts);
    return Array.from({ length: parts }, (_, i) => column.slice(i * size, (i + 1) * size));
  });
}

/** Order the nodes of columns by those beside them in other columns. */
function order(columns, beside) {
  const place = new Map();
  const note = () => columns.forEach((column) => column.nodes.forEach((node, i) => place.set(node.id, i - (column.nodes.length - 1) / 2)));
  note();
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const column of sweep % 2 ? [...columns].reverse() : columns) {
      const own = new Set(column.nodes.map((node) => node.id));
      const wanted = new Map(
        column.nodes.map((node) => [node.id, mean((beside.get(node.id) ?? []).filter((id) => place.has(id) && !own.has(id)).map((id) => place.get(id))) ?? place.get(node.id)]),
      );
      column.nodes.sort((a, b) => wanted.get(a.id) - wanted.get(b.id) || compare(a.id, b.id));
      note();
    }
  }
}

/** Set the middles of all nodes: near those beside them, in the order of their column. */
function vertical(columns, beside, step) {
  const y = new Map();
  for (const column of columns) column.nodes.forEach((node, i) => y.set(node.id, (i - (column.nodes.length - 1) / 2) * step));
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    for (const column of sweep % 2 ? [...columns].reverse() : columns) {
      const own = new Set(column.nodes.map((node) => node.id));
      const wanted = column.nodes.map(
        (node) => mean((beside.get(node.id) ?? []).filter((id) => y.has(id) && !own.has(id)).map((id) => y.get(id))) ?? y.get(node.id),
      );
      spread(wanted, step).forEach((value, i) => y.set(column.nodes[i].id, value));
    }
  }
  for (const column of columns) column.ys = column.nodes.map((node) => y.get(node.id));
}

/** Return values near the wanted ones, in their order and at least `step` apart (least squares). */
export function spread(wanted, step) {
  const blocks = [];
  wanted.forEach((value, i) => {
    let block = { sum: value - i * step, size: 1 };
    while (blocks.length && blocks.at(-1).sum / blocks.at(-1).size >= block.sum / block.size) {
      const above = blocks.pop();
      block = { sum: above.sum + block.sum, size: above.size + block.size };
    }
    blocks.push(block);
  });
  return blocks.flatMap((block) => Array(block.size).fill(block.sum / block.size)).map((value, i) => value + i * step);
}
