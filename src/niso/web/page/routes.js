// Draw edges as lines that go between nodes and not through them. Pure.

import { spread } from "./layout.js";

const CLEAR = 9;
const APART = 7;

/** Return {id: {path, end, side, points}} for edges between placed nodes.

    `points` are close to each other on the line, from its start to its end. */
export function routes(edges, at, reach) {
  const shown = edges.filter((edge) => at.has(edge.from) && at.has(edge.to));
  const columns = columnsOf([...at.values()]);
  const ports = portsOf(shown, at);
  const used = new Map();
  return new Map(shown.map((edge) => [edge.id, route(edge, at, columns, ports, used, reach)]));
}

/** Return the boxes in columns, from left to right: those beside each other are in one. */
function columnsOf(boxes) {
  const columns = [];
  for (const box of [...boxes].sort((a, b) => a.x - b.x)) {
    const last = columns.at(-1);
    if (last !== undefined && box.x < last.right + 2 * CLEAR) {
      last.boxes.push(box);
      last.right = Math.max(last.right, box.x + box.width);
    } else {
      columns.push({ x: box.x, right: box.x + box.width, boxes: [box] });
    }
  }
  return columns;
}

const middle = (box) => box.y + box.height / 2;

/** Return which sides two boxes are joined by. */
function sides(from, to) {
  if (to.x >= from.x + from.width) return ["right", "left"];
  if (from.x >= to.x + to.width) return ["left", "right"];
  return ["right", "right"];
}

/** Return where each edge leaves and enters: spread over a side, in the order of the other ends. */
function portsOf(edges, at) {
  const bySide = new Map();
  for (const edge of edges) {
    const [out, into] = sides(at.get(edge.from), at.get(edge.to));
    for (const [end, id, side, other] of [["from", edge.from, out, edge.to], ["to", edge.to, into, edge.from]]) {
      const key = `${id}|${side}`;
      if (!bySide.has(key)) bySide.set(key, []);
      bySide.get(key).push({ key: `${end}|${edge.id}`, id, side, y: middle(at.get(other)), x: at.get(other).x, edge: edge.id });
    }
  }
  const ports = new Map();
  for (const list of bySide.values()) {
    // those between the same two nodes in one order at both ends, so that they do not cross
    list.sort((a, b) => a.y - b.y || a.x - b.x || (a.edge < b.edge ? -1 : 1));
    list.forEach((one, i) => {
      const box = at.get(one.id);
      const room = Math.min(box.height - 8, list.length * 33);
      const y = middle(box) - room / 2 + (room / list.length) * (i + 0.5);
      ports.set(one.key, { x: one.side === "right" ? box.x + box.width : box.x, y, side: one.side });
    });
  }
  return ports;
}

function route(edge, at, columns, ports, used, reach) {
  const start = ports.get(`from|${edge.id}`);
  const end = ports.get(`to|${edge.id}`);
  if (start.side === end.side) return bulge(start, end, reach);
  const back = start.side === "left";
  const [a, b] = back ? [end, start] : [start, end];
  const points = [a];
  for (const column of columns) {
    if (column.x <= a.x + 1 || column.right >= b.x - 1) continue;
    const wanted = a.y + ((b.y - a.y) * ((column.x + column.right) / 2 - a.x)) / (b.x - a.x);
    const last = points.at(-1).y;
    const y = free(column, Math.abs(last - b.y) < 4 ? last : wanted, used);
    if (y !== null) points.push({ x: column.x - CLEAR, y }, { x: column.right + CLEAR, y });
  }
  points.push(b);
  if (back) points.reverse();
  return line(curves(points), end);
}

/** Return a height near the wanted one at which a line crosses a column; null where all is free. */
function free(column, wanted, used) {
  const blocked = column.boxes.some((box) => box.y - CLEAR < wanted && wanted < box.y + box.height + CLEAR);
  let y = wanted;
  if (blocked) {
    const edges = column.boxes.flatMap((box) => [box.y - CLEAR - 2, box.y + box.height + CLEAR + 2]);
    const open = edges.filter((one) => !column.boxes.some((box) => box.y - CLEAR < one && one < box.y + box.height + CLEAR));
    y = open.reduce((best, one) => (Math.abs(one - wanted) < Math.abs(best - wanted) ? one : best), open[0] ?? wanted);
  }
  const key = `${column.x}|${Math.round(y / APART)}`;
  const times = used.get(key) ?? 0;
  used.set(key, times + 1);
  if (!blocked && times === 0) return y;
  return y + (times % 2 ? 1 : -1) * Math.ceil(times / 2) * 3;
}

/** Return curves that are level at each point, each as four points (a cubic Bézier curve). */
function curves(points) {
  return points.slice(1).map((b, i) => {
    const a = points[i];
    const half = (b.x - a.x) / 2;
    return [a, { x: a.x + half, y: a.y }, { x: b.x - half, y: b.y }, b];
  });
}

/** Return a line between two nodes of one column, which leaves and enters at the right. */
function bulge(start, end, reach) {
  const x = Math.max(start.x, end.x) + reach * (0.35 + Math.min(1.05, Math.abs(end.y - start.y) / 400));
  return line([[start, { x, y: start.y }, { x, y: end.y }, end]], end);
}

const STEP = 5; // pixels between the points of a line, at most

function line(parts, end) {
  const [first] = parts[0];
  let path = `M${round(first.x)} ${round(first.y)}`;
  const points = [first];
  for (const [a, b, c, d] of parts) {
    path += a.y === d.y && a.y === b.y ? `H${round(d.x)}` : `C${[b, c, d].map((one) => `${round(one.x)} ${round(one.y)}`).join(" ")}`;
    const many = Math.ceil((Math.hypot(b.x - a.x, b.y - a.y) + Math.hypot(c.x - b.x, c.y - b.y) + Math.hypot(d.x - c.x, d.y - c.y)) / STEP);
    for (let i = 1; i <= many; i++) {
      const [t, u] = [i / many, 1 - i / many];
      const on = (axis) => u * u * u * a[axis] + 3 * u * u * t * b[axis] + 3 * u * t * t * c[axis] + t * t * t * d[axis];
      points.push({ x: on("x"), y: on("y") });
    }
  }
  return { path, end, side: end.side, points };
}

/** Return {id: line} for bundles between frames: from the sides that face each other. */
export function bundleRoutes(bundles, boxOf) {
  const ends = new Map();
  const ways = bundles.map((bundle) => {
    const [a, b] = [boxOf(bundle.from), boxOf(bundle.to)];
    const gaps = { right: b.x - a.x - a.width, left: a.x - b.x - b.width, bottom: b.y - a.y - a.height, top: a.y - b.y - b.height };
    const out = Object.keys(gaps).reduce((best, side) => (gaps[side] > gaps[best] ? side : best));
    const into = { right: "left", left: "right", bottom: "top", top: "bottom" }[out];
    for (const [end, group, box, side, other] of [["from", bundle.from, a, out, b], ["to", bundle.to, b, into, a]]) {
      const key = `${group}|${side}`;
      if (!ends.has(key)) ends.set(key, { box, side, list: [] });
      const level = side === "left" || side === "right";
      // where the two sides face each other, the line is straight
      const [from, to] = level ? [Math.max(box.y, other.y), Math.min(box.y + box.height, other.y + other.height)] : [Math.max(box.x, other.x), Math.min(box.x + box.width, other.x + other.width)];
      const centre = level ? other.y + other.height / 2 : other.x + other.width / 2;
      ends.get(key).list.push({ end, bundle, wanted: from < to ? (from + to) / 2 : centre, centre });
    }
    return { bundle, out };
  });
  const at = new Map();
  for (const { box, side, list } of ends.values()) {
    const level = side === "left" || side === "right";
    const [low, size] = level ? [box.y, box.height] : [box.x, box.width];
    for (const one of list) one.wanted = Math.min(Math.max(one.wanted, low + 6), low + size - 6);
    list.sort((a, b) => a.wanted - b.wanted || a.centre - b.centre || (a.bundle.id < b.bundle.id ? -1 : 1));
    const step = Math.min(18, (size - 12) / list.length);
    const places = spread(list.map((one) => one.wanted), step);
    const shift = Math.max(low + 6 - places[0], Math.min(0, low + size - 6 - places.at(-1)));
    list.forEach((one, i) => {
      const along = places[i] + shift;
      const place = level ? { x: side === "right" ? box.x + box.width : box.x, y: along } : { x: along, y: side === "bottom" ? box.y + box.height : box.y };
      at.set(`${one.end}|${one.bundle.id}`, { ...place, side });
    });
  }
  return new Map(
    ways.map(({ bundle, out }) => {
      const [a, b] = [at.get(`from|${bundle.id}`), at.get(`to|${bundle.id}`)];
      const level = out === "left" || out === "right";
      const [middleX, middleY] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
      return [bundle.id, line([level ? [a, { x: middleX, y: a.y }, { x: middleX, y: b.y }, b] : [a, { x: a.x, y: middleY }, { x: b.x, y: middleY }, b]], b)];
    }),
  );
}

const round = (number) => Math.round(number * 10) / 10;
