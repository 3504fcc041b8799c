// Place nodes: the host's wall with its doors at the left, networks as frames, other machines at
// both sides. Pure, and the same for the same input.
//
// A network is a frame. Two networks with common services lie beside each other, and their frames
// overlap where those are. A service on more networks than that is drawn in two of them at most.
//
// Long chains of flows make a map wide. Of several maps, with ever fewer columns, the one is taken
// that is shown largest in the shape of the window.

export const NODE = { width: 164, height: 74 };
const DOOR = { width: 122, height: 42 };
const OUTER = { width: 130, height: 46 };
const GAP = { x: 106, y: 34 };
const ROOM = { outer: 64, wall: 84 };
const PADDING = { x: 22, top: 58, bottom: 26 };
const WALL_TITLE = 50;
const BETWEEN = 56;
const MARGIN = 14;
const LEAST = { width: 800, height: 400 };
const SHIFT = 14;
const SWEEPS = 6;
const FEWER = [0, 1, 2, 4, 8];
// so much larger is worth columns that do not follow the flows: more of what can be read
const READABLE = 0.6;
const gain = (scale) => (scale < READABLE ? 1.1 : 1.3);

/** Return {at, frames, wall, box}; `at` has x, y, width, height by the id of a node.

    `shape` is the {width, height} of what it is shown in. */
export function layout(map, shape = LEAST) {
  let best = null;
  for (const fewer of FEWER) {
    for (const isBeside of [false, true]) {
      const made = placed(map, fewer, isBeside ? shape : null);
      const scale = Math.min(shape.width / made.box.width, shape.height / made.box.height);
      if (best === null || scale > best.scale * gain(best.scale)) best = { ...made, scale };
    }
  }
  return best;
}

/** Return a map with fewer columns than flows ask for, networks beside each other as `shape` has room. */
function placed({ nodes, edges, networks }, fewer, shape) {
  const inner = nodes.filter((node) => node.kind === "service" || node.kind === "fold");
  const doors = nodes.filter((node) => node.kind === "door");
  const clients = nodes.filter((node) => node.kind === "client" || node.kind === "host");
  const links = linksOf(edges);
  const { beside } = links;
  const at = new Map();
  const frames = [];
  const left = clients.length > 0 ? 20 + OUTER.width + ROOM.outer : 36;
  const start = doors.length > 0 ? left + DOOR.width + ROOM.wall : left;
  const parts = components(inner, networks, beside).map((component) => {
    const own = { at: new Map(), frames: [] };
    return { ...own, size: placeComponent(component, links, own.at, own.frames, fewer) };
  });
  const { right, bottom } = shelve(parts, start, shape);
  for (const part of parts) {
    for (const [id, box] of part.at) at.set(id, { ...box, x: box.x + part.x, y: box.y + part.y });
    for (const frame of part.frames) frames.push({ ...frame, x: frame.x + part.x, y: frame.y + part.y, title: frame.title + part.x });
  }
  const wanted = (node) => mean((beside.get(node.id) ?? []).filter((id) => at.has(id)).map((id) => middle(at.get(id))));
  const column = (list, x, size, gap) => {
    const sorted = list.map((node) => ({ node, y: wanted(node) ?? bottom / 2 })).sort((a, b) => a.y - b.y || compare(a.node.id, b.node.id));
    const ys = spread(sorted.map((one) => one.y), size.height + gap);
    sorted.forEach(({ node }, i) => at.set(node.id, { x, y: ys[i] - size.height / 2, ...size }));
  };
  column(doors, left, DOOR, 20);
  column(clients, 20, OUTER, 20);
  column(nodes.filter((node) => node.kind === "server"), right + ROOM.wall, OUTER, 20);
  const wall = doors.length > 0 ? wallOf(doors.map((node) => at.get(node.id)), frames, left) : null;
  const boxes = [...at.values(), ...frames];
  return { at, frames, wall, box: around(wall ? [...boxes, wall] : boxes) };
}

/** Return the wall that has the doors: beside the networks that they lead to, or all of it. */
function wallOf(doors, frames, left) {
  const top = Math.min(...doors.map((box) => box.y)) - WALL_TITLE;
  const low = Math.max(...doors.map((box) => box.y + box.height)) + 16;
  const near = frames.filter((frame) => frame.y < low && frame.y + frame.height > top);
  const y = Math.min(top, ...near.map((frame) => frame.y));
  return { x: left - 16, y, width: DOOR.width + 32, height: Math.max(low, ...near.map((frame) => frame.y + frame.height)) - y };
}

/** Set x and y of parts: below each other, or in rows of the shape's proportions; return the corner. */
function shelve(parts, start, shape) {
  const widest = Math.max(0, ...parts.map((part) => part.size.width));
  const area = parts.reduce((sum, part) => sum + (part.size.width + BETWEEN) * (part.size.height + BETWEEN), 0);
  const most = shape === null ? 0 : Math.max(widest, Math.sqrt((area * shape.width) / shape.height));
  let [x, y, high, right] = [start, 30, 0, start];
  for (const part of parts) {
    if (x > start && x + part.size.width > start + most) [x, y, high] = [start, y + high + BETWEEN, 0];
    [part.x, part.y] = [x, y];
    right = Math.max(right, x + part.size.width);
    x += part.size.width + BETWEEN;
    high = Math.max(high, part.size.height);
  }
  return { right, bottom: Math.max(y + high, 200) };
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
function components(nodes, networks, beside) {
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
  for (const [pair] of [...shared].sort((a, b) => b[1] - a[1] || compare(a[0], b[0]))) {
    const [a, b] = pair.split("\0");
    if ((links.get(a) ?? []).length > 1 || (links.get(b) ?? []).length > 1 || find(a) === find(b)) continue;
    links.set(a, [...(links.get(a) ?? []), b]);
    links.set(b, [...(links.get(b) ?? []), a]);
    root.set(find(a), find(b));
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
function placeComponent({ path, cells, subnets }, links, at, frames, fewer) {
  const total = cells.reduce((sum, cell) => sum + cell.nodes.length, 0);
  const most = Math.max(4, Math.min(14, Math.ceil(Math.sqrt(total * 1.4)))) + fewer;
  const columns = cells.flatMap((cell) => columnsOf(cell, links, most, fewer, cells.length === 1).map((nodes) => ({ cell, nodes })));
  order(columns, links.beside);
  vertical(columns, links.beside);
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
function columnsOf(cell, { beside, out }, most, fewer, isOnly) {
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
  for (const node of idle) columns.reduce((a, b) => (b.length < a.length ? b : a)).push(node);
  return columns.flatMap((column) => {
    const parts = Math.ceil(column.length / most);
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
function vertical(columns, beside) {
  const step = NODE.height + GAP.y;
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
